"""Linear attention with a fixed decay (lightning attention): MiniMax-01."""

from typing import Any

from torch import Tensor, nn

from .mixer_state import Call, Kind, State, cache_argument, holds


class _LinearCache:
    """A `State` with the interface of MiniMax's cache."""

    def __init__(self, state: State) -> None:
        self._parts = state.parts

    def get_linear_cache(self, layer_idx: int) -> Tensor | None:
        return self._parts.get(("recurrent", 0))

    def set_linear_cache(self, layer_idx: int, linear_cache: Tensor) -> None:
        self._parts["recurrent", 0] = linear_cache


def _matches(module: nn.Module) -> bool:
    return holds(module, "slope_rate", "qkv_proj", "output_gate", "layer_idx")


def _continued(module: Any) -> Call:
    argument = cache_argument(module)

    def run(x: Tensor, state: State) -> Tensor:
        return type(module).forward(module, x, None, None, **{argument: _LinearCache(state)})[0]

    return run


KIND = Kind("lightning attention", _matches, _continued, pairs=True)
