"""Gated delta nets: Qwen3-Next, Qwen3.5, OLMo-Hybrid, and Kimi's delta attention."""

from typing import Any

from torch import nn

from .mixer_state import Call, Kind, holds, in_short_chunks, own_forward, own_function

_SCANS = ("torch_chunk_gated_delta_rule", "chunk_kimi_delta_attention")


def _matches(module: nn.Module) -> bool:
    is_gated = holds(module, "A_log", "dt_bias") or holds(module, "forget_gate")
    return holds(module, "conv1d", "layer_idx") and is_gated and not holds(module, "D")


def _continued(module: Any) -> Call:
    scans = {name: in_short_chunks(own_function(module, name), lambda x: x.shape[1]) for name in _SCANS}
    return own_forward(module, **scans)


KIND = Kind("gated delta net", _matches, _continued)
