"""Kimi's delta attention, in which every channel has its own decay."""

from typing import Any

from torch import nn

from .mixer_state import Call, Kind, holds, in_short_chunks, own_forward, own_function

_SCAN = "chunk_kimi_delta_attention"


def _matches(module: nn.Module) -> bool:
    return holds(module, "conv1d", "layer_idx", "forget_gate")


def _continued(module: Any) -> Call:
    return own_forward(
        module, chunk_kimi_delta_attention=in_short_chunks(own_function(module, _SCAN), lambda x: x.shape[1])
    )


KIND = Kind("Kimi's delta attention", _matches, _continued)
