"""Mamba-1 (selective scan): Mamba, Falcon-Mamba, Jamba, Zamba.

Transformers' scan always starts from a zero state. The recurrence is linear in its state, so the contribution of an initial
state h_0 is added after the scan: h_t = (product of the decays up to t) h_0 + the scan's result.

Shapes: B rows, E channels, N numbers of state per channel, S tokens.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .mixer_state import Call, Kind, State, holds, own_forward, own_function


def _matches(module: nn.Module) -> bool:
    return holds(module, "conv1d", "in_proj", "A_log", "D") and (
        holds(module, "x_proj") or holds(module, "x_proj_weight")
    )


def _continued(module: Any) -> Call:
    scan = own_function(module, "mamba_selective_scan")
    assert scan is not None
    plain = own_forward(module)

    def run(x: Tensor, state: State) -> Tensor:
        before = state.parts.get(("recurrent", 0))
        if before is None or x.shape[1] == 1:
            return plain(x, state)

        heads = iter(before.unbind(1) if before.ndim == 4 else [before])  # Zamba scans head by head

        def from_state(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, **named: Any) -> Any:
            """u, dt [B, E, S]; A [E, N]; B, C [B, N, S]"""
            gate, skip = named.pop("z"), named.pop("D")
            y, last = scan(u, dt, A, B, C, **named)
            delta = F.softplus(dt + named["delta_bias"].to(dt.dtype)[..., None])
            decay = torch.exp(A[None, :, None, :] * delta.float().cumsum(-1)[..., None])  # [B, E, S, N]
            carried = decay * next(heads).float()[:, :, None]
            y = y + torch.einsum("besn,bns->bes", carried, C.float()).to(y.dtype) + u * skip[None, :, None]
            return y * F.silu(gate), last + carried[:, :, -1].to(last.dtype)

        return own_forward(module, mamba_selective_scan=from_state)(x, state)

    return run


KIND = Kind("Mamba-1", _matches, _continued)
