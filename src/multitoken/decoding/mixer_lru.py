"""RG-LRU: the recurrent blocks of RecurrentGemma (Griffin).

Transformers keeps their state in the modules themselves and takes a convolution of several tokens for the first. Its forward is
run here on stand-ins, which hold a state of their own and leave the modules as they are.

Shapes: B rows, S tokens, E channels.
"""

from typing import Any

import torch
from torch import Tensor, nn

from .mixer_state import Call, Kind, State, holds


class _StandIn:
    """The module, but for what is set on it here."""

    def __init__(self, module: nn.Module, **own: Any) -> None:
        self._module = module
        self.__dict__.update(own)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def _matches(module: nn.Module) -> bool:
    return holds(module, "rg_lru", "conv_1d", "linear_x", "linear_y")


def _continued(module: Any) -> Call:
    behind = module.conv1d_width - 1

    def run(x: Tensor, state: State) -> Tensor:
        parts = state.parts
        seen = parts.get(("seen", 0))  # tokens in front: the unit's first one of all is another's
        seen = torch.zeros(len(x), dtype=torch.long, device=x.device) if seen is None else seen
        positions = seen[:, None] + torch.arange(x.shape[1], device=x.device)
        unit = _StandIn(module.rg_lru, recurrent_states=parts.get(("recurrent", 0)))

        def convolve(channels: Tensor) -> Tensor:
            """[B, E, S] -> [B, E, S and more]"""
            before = parts.get(("conv", 0))
            before = channels.new_zeros(*channels.shape[:2], behind) if before is None else before
            whole = torch.cat([before, channels], -1)
            parts["conv", 0] = whole[..., -behind:]
            return module.conv_1d(whole)[..., behind:]

        here = _StandIn(
            module,
            conv1d_state=x.new_zeros(len(x)),  # of as many rows, so that none is set up
            conv_1d=convolve,
            rg_lru=lambda channels, _: type(module.rg_lru).forward(unit, channels, positions),  # pyright: ignore[reportArgumentType]
        )
        # Two positions, whatever there are: with one it would look for a state of its own.
        several = positions.new_zeros(len(x), 2)
        y, _ = type(module).forward(here, x, several, None, use_cache=True)
        parts["recurrent", 0], parts["seen", 0] = unit.recurrent_states, seen + x.shape[1]
        return y

    return run


KIND = Kind("RG-LRU", _matches, _continued, pairs=True)
