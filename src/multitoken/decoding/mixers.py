"""The recurrent layers of a model, and how they are run in layouts that they know nothing of.

A block mask cannot stop a recurrence: masks and drafts would write to the state that real tokens read. So the mixers of a model
are led around it: where a pass brings a cache that has a `recurrent` layout, that layout says which tokens a mixer sees, from
which state, and what becomes of it. There are two: `recurrent.RecurrentSlots` for decoding, `block_states.BlockStates` for
blocks. Any other pass finds the mixers as they were.
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
    """What acts at masks inside a mixer, and must be told where they stand there: the gate."""

    def following(self, source: Tensor) -> Any:
        """A context. source [B', S']: which token of the pass, counted through its rows, each token inside is, -1 for none."""
        ...


class Layout(Protocol):
    """How the mixers of one pass are run."""

    def run(self, mixer: "Mixer", x: Tensor) -> Tensor:
        """The pass's tokens at one mixer, [B, S, D] -> [B, S, D]."""
        ...


class Mixer:
    """One recurrent layer. index: its number among the mixers of its model."""

    def __init__(self, module: nn.Module, kind: Kind, index: int, followers: list[Follows]) -> None:
        self.module, self.kind, self.index = module, kind, index
        self._followers = followers
        self._plain: Any = module.forward
        self._continued: Call | None = None

    def __call__(self, x: Tensor, state: State, source: Tensor) -> tuple[Tensor, State]:
        """x [B, S, D] from `state`, which stays as it is -> output [B, S, D], and the state behind the last token."""
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
    """Stands for a mixer's forward."""
    cache = next((named[name] for name in CACHE_NAMES if named.get(name) is not None), None)
    layout: Layout | None = getattr(cache, "recurrent", None)
    if layout is None:
        return mixer._plain(hidden_states, *args, **named)
    y = layout.run(mixer, hidden_states)
    return (y, None) if mixer.kind.pairs else y


class Mixers:
    """Those of one model, in its order."""

    def __init__(self, found: list[tuple[nn.Module, Kind]]) -> None:
        self.followers: list[Follows] = []
        self.all = [Mixer(module, kind, i, self.followers) for i, (module, kind) in enumerate(found)]
        for mixer in self.all:
            mixer.module.forward = partial(_enter, mixer)

    def __len__(self) -> int:
        return len(self.all)

    @property
    def leave_any(self) -> bool:
        """Whether all can leave the states behind any of their tokens."""
        return all(m.kind.leaves_any and next(m.module.parameters()).device.type == "cpu" for m in self.all)

    @classmethod
    def of(cls, model: PreTrainedModel) -> "Mixers | None":
        """The same at each call; None for a model of attention alone, which is left as it is."""
        if "_mtp_mixers" not in model.__dict__:
            found = [(m, kind) for m in model.modules() for kind in KINDS if kind.matches(m)]
            model.__dict__["_mtp_mixers"] = cls(found) if found else None
        return model.__dict__["_mtp_mixers"]


def cache_inputs(model: PreTrainedModel, cache: Any) -> dict[str, Any]:
    """What a pass of the model is given, so that it uses this cache and no other."""
    # MiniMax uses a cache that it is given, but refuses one of a class not its own where `use_cache` is set.
    return {cache_argument(model): cache, "use_cache": model.config.model_type != "minimax"}
