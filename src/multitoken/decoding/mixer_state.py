"""The state of a recurrent layer, and what must be known about each kind of such layers.

A *mixer* is a layer whose output at a token depends on a state that all tokens before it have written: Mamba, gated delta
nets, short convolutions. Its own forward, which is transformers' code, is given a `State` where it expects a cache.

Shapes: B rows, S tokens, D hidden.
"""

import functools
import inspect
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .position_bias import with_globals
from .scan_states import AnyState

Parts = dict[tuple[str, int], Tensor]

# Names of the cache argument. Since transformers 5.24 only the first is used. Before, Mamba-like models and mixers used the second
# and all others the third.
CACHE_NAMES = ("cache", "cache_params", "past_key_values")

_STATES = 3  # states of each sort that a layer may have: queries, keys and values may have a convolution each


Leaves = Literal["the last", "any", "none"]


class State:
    """The state of one layer for B rows, with the interface of transformers' linear-attention cache. A call replaces its parts
    and never writes into them, so any number of continuations can start from one state, with gradients too.

    leaves: which states can be read after a call. "the last": the state after its last token. "any": the states after any of its
    tokens, to be read by `at`, for kinds that support this (`Kind.leaves_any`). "none": no state, because nothing continues from it.
    """

    def __init__(self, parts: Parts | None = None, *, leaves: Leaves = "the last") -> None:
        self.parts: Parts = dict(parts or {})
        self.leaves: Leaves = leaves
        self.scanned: AnyState | None = None
        # (inputs [B, D, K + S], K): the first K inputs are earlier ones or zeros.
        self._convolved: dict[int, tuple[Tensor, int]] = {}

    @property
    def left_by_scan(self) -> dict[str, bool]:
        """The keyword arguments that tell our own scans which states to leave."""
        return {"leaves_last": self.leaves == "the last", "leaves_any": self.leaves == "any"}

    def again(self) -> "State":
        return State(self.parts, leaves=self.leaves)

    def at(self, rows: Tensor, behind: Tensor) -> Parts:
        """After a call that leaves any: the states of its rows `rows` [W], each after the first `behind` [W] tokens of the row."""
        parts: Parts = {}
        for i, (inputs, kernel) in self._convolved.items():
            parts["conv", i] = inputs.unfold(-1, kernel, 1)[rows, :, behind]
        if self.scanned is not None:
            parts["recurrent", 0] = self.scanned.at(rows, behind)
        return parts

    def rows(self, index: Tensor | Sequence[int] | slice, *, leaves: Leaves = "the last") -> "State":
        return State({key: part[index] for key, part in self.parts.items()}, leaves=leaves)

    def owned(self) -> "State":
        """A copy, because the one-token kernels of transformers write in place."""
        return State({key: part.clone() for key, part in self.parts.items()})

    def get_conv_state(self, layer_idx: int, state_idx: int = 0) -> Tensor | None:
        return self.parts.get(("conv", state_idx))

    def get_recurrent_state(self, layer_idx: int, state_idx: int = 0) -> Tensor | None:
        return self.parts.get(("recurrent", state_idx))

    def has_previous_state(self, layer_idx: int | None = None, state_idx: int | None = None) -> bool:
        return bool(self.parts)

    def is_recording_past(self, layer_idx: int) -> bool:
        return True  # makes transformers call `update_conv_state` instead of a kernel that writes in place

    @property
    def layers(self) -> "_Layers":
        """The same for transformers 5.19, which reads a list of layer caches."""
        return _Layers(self)

    def update_conv_state(
        self, conv_states: Tensor, layer_idx: int, state_idx: int = 0, conv_kernel_size: int | None = None, **_: Any
    ) -> Tensor:
        """Return the remembered inputs of the convolution followed by `conv_states` [B, D, S], and remember the last of them."""
        before = self.parts.get(("conv", state_idx))
        whole = conv_states if before is None else torch.cat([before, conv_states], -1)
        assert conv_kernel_size is not None
        if self.leaves == "any":
            inputs = nn.functional.pad(whole, (conv_kernel_size, 0)) if before is None else whole
            self._convolved[state_idx] = inputs, conv_kernel_size
            return whole
        kept = whole[..., -conv_kernel_size:]
        self.parts["conv", state_idx] = nn.functional.pad(kept, (conv_kernel_size - kept.shape[-1], 0))
        return whole

    def update_recurrent_state(self, recurrent_states: Tensor, layer_idx: int, state_idx: int = 0, **_: Any) -> Tensor:
        # Another version of transformers may name its scan differently, and ours is then not called.
        assert self.leaves != "any" or self.scanned is not None, "the scan that leaves any state was not called"
        self.parts["recurrent", state_idx] = recurrent_states
        return recurrent_states


class _Layers:
    """A list of layer caches that gives the same state for every layer number."""

    def __init__(self, state: State) -> None:
        self._state = state

    def __getitem__(self, layer_idx: int) -> types.SimpleNamespace:
        state = self._state
        return types.SimpleNamespace(
            record_past=state.is_recording_past(layer_idx),
            conv_states=[state.get_conv_state(layer_idx, i) for i in range(_STATES)],
            recurrent_states=[state.get_recurrent_state(layer_idx, i) for i in range(_STATES)],
        )


Call = Callable[[Tensor, State], Tensor]


@dataclass(frozen=True)
class Kind:
    """One kind of mixer. To add a kind, write one file that makes a `Kind`, and add a line to `mixers.KINDS`.

    matches: whether a module is of this kind, judged by its attributes. continued: takes a module and returns a function that
    runs x [B, S, D], any number of tokens, from a state and updates the state to the one after the last token -> [B, S, D]. A state
    without parts is the state before the first token, and so is a state of zeros. pairs: its forward returns a pair whose first
    item is the output. leaves_any: on a CPU, it can leave the states after any of its tokens.
    """

    name: str
    matches: Callable[[nn.Module], bool]
    continued: Callable[[Any], Call]
    pairs: bool = False
    leaves_any: bool = False


def cache_argument(module: nn.Module) -> str:
    """The name of the cache argument of a model's or a layer's forward."""
    return _cache_argument(type(module).forward)


@functools.cache  # called for every layer in every step
def _cache_argument(forward: Callable[..., Any]) -> str:
    known = inspect.signature(forward).parameters
    return next((name for name in CACHE_NAMES if name in known), CACHE_NAMES[-1])


def holds(module: nn.Module, *names: str) -> bool:
    return all(hasattr(module, name) for name in names)


def axes(parameter: Any) -> int:
    return parameter.ndim


def own_forward(module: Any, *, scans: dict[str, Callable[..., Any]] | None = None, **replaced: Any) -> Call:
    """The module's own forward, with a state as its cache and with the given functions in place of those that it calls. scans:
    our own scans, which replace transformers' on a CPU and take the current state as their first argument. On other devices
    transformers' own scans run, because they have kernels there."""
    at_work: list[State] = []
    for name, scan in (scans or {}).items():
        replaced[name] = partial(_scan_on_cpu, scan, own_function(module, name), at_work)
    known = {name: function for name, function in replaced.items() if name in _globals(module)}
    forward = types.MethodType(with_globals(type(module).forward, **known), module)
    argument = cache_argument(module)

    def run(x: Tensor, state: State) -> Tensor:
        at_work[:] = [state]
        y = forward(x, **{argument: state})
        return y[0] if isinstance(y, tuple) else y

    return run


def _scan_on_cpu(scan: Any, theirs: Any, at_work: list[State], x: Tensor, *args: Any, **named: Any) -> Any:
    return scan(at_work[0], x, *args, **named) if x.device.type == "cpu" else theirs(x, *args, **named)


def own_function(module: Any, name: str) -> Callable[..., Any] | None:
    """A function that the module's forward finds among the globals of its file, or None."""
    return _globals(module).get(name)


def _globals(module: Any) -> dict[str, Any]:
    function: Any = type(module).forward
    while hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    return function.__globals__


def in_short_chunks(function: Callable[..., Any] | None, length: Callable[[Any], int]) -> Callable[..., Any]:
    """Wrap a chunked scan that pads to whole chunks: on a CPU, its chunks become about as short as the input. length: the number
    of tokens in the scan's first argument."""

    def scan(x: Tensor, *args: Any, chunk_size: int = 64, **named: Any) -> Any:
        assert function is not None
        if x.device.type == "cpu":
            chunk_size = min(chunk_size, max(2, 1 << (length(x) - 1).bit_length()))
        return function(x, *args, chunk_size=chunk_size, **named)

    return scan
