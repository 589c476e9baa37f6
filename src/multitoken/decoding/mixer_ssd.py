"""Mamba-2 (state space duality): Mamba-2 itself, Falcon-H1, Bamba, Granite 4, Nemotron-H, Zamba2."""

from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from .mixer_state import Call, Kind, State, axes, holds, own_forward, own_function
from .ssd_scan import scan


def _matches(module: nn.Module) -> bool:
    return holds(module, "conv1d", "in_proj", "A_log", "D", "dt_bias") and axes(module.A_log) == 1


def _one_token(update: Any, limit: tuple[float, float], *args: Any, **named: Any) -> Tensor:
    """The update for one token, with the time-step limits that transformers applies for several tokens but forgets here."""
    state, x, dt, *rest = args
    dt = F.softplus(dt + named.pop("dt_bias").to(dt.dtype)).clamp(*limit)
    named["dt_softplus"] = False
    return update(state, x, dt, *rest, dt_bias=None, **named)


def _scan(
    state: State, x: Tensor, *args: Any, chunk_size: int, return_final_states: bool, z: None, **named: Any
) -> Any:
    y, last, state.scanned = scan(x, *args, **named, **state.left_by_scan)
    return (y, last) if return_final_states else y


def _continued(module: Any) -> Call:
    replaced: dict[str, Any] = {}
    low, high = module.time_step_limit
    if low > 0 or high < float("inf"):
        update = own_function(module, "mamba2_selective_state_update")
        replaced["mamba2_selective_state_update"] = partial(_one_token, update, (low, high))
    return own_forward(module, scans={"mamba2_chunk_scan": _scan}, **replaced)


KIND = Kind("Mamba-2", _matches, _continued, leaves_any=True)
