"""RG-LRU: the recurrent blocks of RecurrentGemma (Griffin).

Transformers keeps the state of these blocks in the modules themselves, and its convolution over several tokens always assumes
that they are the first of the text. Here its forward runs on stand-in objects, which hold their own state and leave the modules
unchanged.

Shapes: B rows, S tokens, E channels.
"""

from typing import Any

import torch
from torch import Tensor, nn

from .mixer_state import Call, Kind, State, holds


class _StandIn:
    """The module, except for the attributes that are set here."""

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
        seen = parts.get(("seen", 0))  # tokens before these: the unit resets its state at position 0
        seen = torch.zeros(len(x), dtype=torch.long, device=x.device) if seen is None else seen
        positions = seen[:, None] + torch.arange(x.shape[1], device=x.device)
        unit = _StandIn(module.rg_lru, recurrent_states=parts.get(("recurrent", 0)))

        def convolve(channels: Tensor) -> Tensor:
            """[B, E, S] -> [B, E, S or more], which the module's forward cuts to S"""
            before = parts.get(("conv", 0))
            before = channels.new_zeros(*channels.shape[:2], behind) if before is None else before
            whole = torch.cat([before, channels], -1)
            parts["conv", 0] = whole[..., -behind:]
            return module.conv_1d(whole)[..., behind:]

        here = _StandIn(
            module,
            conv1d_state=x.new_zeros(len(x)),  # as many rows as x, so that the forward sets up no new state
            conv_1d=convolve,
            rg_lru=lambda channels, _: type(module.rg_lru).forward(unit, channels, positions),  # pyright: ignore[reportArgumentType]
        )
        # Always two positions: with a single one the forward would use the convolution state of its own.
        several = positions.new_zeros(len(x), 2)
        y, _ = type(module).forward(here, x, several, None, use_cache=True)
        parts["recurrent", 0], parts["seen", 0] = unit.recurrent_states, seen + x.shape[1]
        return y

    return run


KIND = Kind("RG-LRU", _matches, _continued, pairs=True)
