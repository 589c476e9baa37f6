"""Gated delta nets: Qwen3-Next, Qwen3.5, OLMo-Hybrid."""

from typing import Any

from torch import Tensor, nn

from .delta_scan import scan
from .mixer_state import Call, Kind, State, holds, own_forward, own_function

_SCAN = "torch_chunk_gated_delta_rule"


def _matches(module: nn.Module) -> bool:
    return holds(module, "conv1d", "layer_idx", "A_log", "dt_bias") and own_function(module, _SCAN) is not None


def _scan(
    state: State, query: Tensor, *args: Any, output_final_state: bool, cu_seqlens: None = None, **named: Any
) -> Any:
    y, last, state.scanned = scan(query, *args, **named, **state.left_by_scan)
    return y, last


def _continued(module: Any) -> Call:
    return own_forward(module, scans={_SCAN: _scan})


KIND = Kind("gated delta net", _matches, _continued, leaves_any=True)
