"""Short convolutions over a few tokens: LFM2 and its mixture-of-experts models."""

from typing import Any

from torch import nn

from .mixer_state import Call, Kind, holds, own_forward


def _matches(module: nn.Module) -> bool:
    return type(module).__name__.endswith("ShortConv") and holds(module, "conv", "in_proj", "layer_idx")


def _continued(module: Any) -> Call:
    return own_forward(module)


KIND = Kind("short convolution", _matches, _continued, leaves_any=True)
