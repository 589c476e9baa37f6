"""The recurrent layers of a model, and how they run in layouts that they know nothing about.

An attention mask cannot stop a recurrence: masks and drafts would write to the state that real tokens read. The mixers of a model
are therefore handled separately. If a pass has a cache with a `recurrent` layout, that layout decides which tokens a mixer sees,
from which state it starts and what happens to the new state. There are two layouts: `recurrent.RecurrentSlots` for decoding and
`block_states.BlockStates` for blocks. In any other pass the mixers run as usual.
"""

import copy
from contextlib import ExitStack
from functools import partial
from typing import Any, Protocol

from torch import Tensor, nn
from transformers import PreTrainedModel

from .mixer_conv import KIND as SHORT_CONVOLUTION
from .mixer_delta import KIND as GATED_DELTA_NET
from .mixer_kimi import KIND as KIMI_DELTA_ATTENTION
from .mixer_lightning import KIND as LIGHTNING_ATTENTION
from .mixer_lru import KIND as RG_LRU
from .mixer_mamba1 import KIND as MAMBA_1
from .mixer_ssd import KIND as MAMBA_2
from .mixer_state import CACHE_NAMES, Call, Kind, State, cache_argument

KINDS = (MAMBA_2, MAMBA_1, GATED_DELTA_NET, KIMI_DELTA_ATTENTION, SHORT_CONVOLUTION, RG_LRU, LIGHTNING_ATTENTION)


class Follows(Protocol):
    """What acts at masks inside a mixer and must be told where the masks are there: the gate."""

    def following(self, source: Tensor) -> Any:
        """A context manager. source [B', S']: the index of each token inside among the pass's tokens, counted through its rows, or -1."""
        ...


class Layout(Protocol):
    """How the mixers run in one pass."""

    def run(self, mixer: "Mixer", x: Tensor) -> Tensor:
        """Run one mixer on the pass's tokens, [B, S, D] -> [B, S, D]."""
        ...


class Mixer:
    """One recurrent layer. index: its number among the mixers of its model."""

    def __init__(self, module: nn.Module, kind: Kind, index: int, followers: list[Follows]) -> None:
        self.module, self.kind, self.index = module, kind, index
        self._followers = followers
        self._plain: Any = module.forward
        self._continued: Call | None = None

    def __call__(self, x: Tensor, state: State, source: Tensor) -> tuple[Tensor, State]:
        """Run x [B, S, D] from `state`, which is not changed -> output [B, S, D], and the state after the last token."""
        if self._continued is None:
            self._continued = self.kind.continued(self.module)
        state = state.owned() if x.shape[1] == 1 else state.again()
        with ExitStack() as stack:
            for follower in self._followers:
                stack.enter_context(follower.following(source))
            return self._continued(x, state), state

    def __deepcopy__(self, memo: dict[int, Any]) -> "Mixer":
        copied = memo[id(self)] = Mixer.__new__(Mixer)
        copied.__dict__ = copy.deepcopy(self.__dict__ | {"_continued": None}, memo)
        return copied


def _enter(mixer: Mixer, hidden_states: Tensor, *args: Any, **named: Any) -> Any:
    """Replaces a mixer's forward."""
    cache = next((named[name] for name in CACHE_NAMES if named.get(name) is not None), None)
    layout: Layout | None = getattr(cache, "recurrent", None)
    if layout is None:
        return mixer._plain(hidden_states, *args, **named)
    y = layout.run(mixer, hidden_states)
    return (y, None) if mixer.kind.pairs else y


class Mixers:
    """The mixers of one model, in the model's order."""

    def __init__(self, found: list[tuple[nn.Module, Kind]]) -> None:
        self.followers: list[Follows] = []
        self.all = [Mixer(module, kind, i, self.followers) for i, (module, kind) in enumerate(found)]
        for mixer in self.all:
            mixer.module.forward = partial(_enter, mixer)

    def __len__(self) -> int:
        return len(self.all)

    @property
    def leave_any(self) -> bool:
        """Whether all mixers can leave the states after any of their tokens."""
        return all(m.kind.leaves_any and next(m.module.parameters()).device.type == "cpu" for m in self.all)

    @classmethod
    def of(cls, model: PreTrainedModel) -> "Mixers | None":
        """The mixers of a model, the same object at each call. None for a model with attention only, which is not changed."""
        if "_mtp_mixers" not in model.__dict__:
            found = [(m, kind) for m in model.modules() for kind in KINDS if kind.matches(m)]
            model.__dict__["_mtp_mixers"] = cls(found) if found else None
        return model.__dict__["_mtp_mixers"]


def cache_inputs(model: PreTrainedModel, cache: Any) -> dict[str, Any]:
    """The arguments that make a pass of the model use this cache and no other."""
    # MiniMax uses any cache that it is given, but with `use_cache` set it refuses a cache of another class than its own.
    return {cache_argument(model): cache, "use_cache": model.config.model_type != "minimax"}
