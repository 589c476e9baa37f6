"""The scan of Mamba-2 for CPUs: state space duality, arXiv 2405.21060, section 6, one chunk after the other.

transformers' own scan, which stands in where its fused kernels do not run, repeats B and C for every head of a group and pads to whole
chunks. Steps and pieces of training are a few tokens, so most of its time went into copies.

Shapes: B rows, S tokens, H heads in G groups, P numbers of a head, N of a state.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK = 64  # tokens that see each other directly; the table of a chunk grows with their square


def scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    D: Tensor | None = None,
    dt_bias: Tensor | None = None,
    initial_states: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    goes_on: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """x [B, S, H, P], dt [B, S, H], A [H], B and C [B, S, G, N], D [H], initial_states [B, H, P, N].
    -> (y [B, S, H, P] and the states [B, H, P, N] behind the last token, both float32). goes_on=False: None for these."""
    rows, _, heads, size = x.shape
    groups, each = B.shape[2], heads // B.shape[2]
    if dt_bias is not None:
        dt = dt + dt_bias.to(dt.dtype)
    dt = (F.softplus(dt) if dt_softplus else dt).clamp(*dt_limit).float()
    x = x.float()
    if initial_states is None:
        state = x.new_zeros(rows, groups, each * size, B.shape[3])
    else:
        state = initial_states.float().reshape(rows, groups, each * size, -1)
    # Decays multiply; their logarithms are summed in float64, for differences of long sums are taken.
    decay = (A.double() * dt.double()).transpose(1, 2)  # [B, H, S]
    moved = (x * dt[..., None]).unflatten(2, (groups, each)).permute(0, 2, 3, 1, 4)  # [B, G, H / G, S, P]
    inputs, readers = B.float().transpose(1, 2), C.float().transpose(1, 2)  # [B, G, S, N]
    outputs = []
    for start in range(0, x.shape[1], CHUNK):
        piece = slice(start, start + CHUNK)
        here = moved[:, :, :, piece], decay[:, :, piece].cumsum(-1).unflatten(1, (groups, each)), inputs[:, :, piece]
        outputs.append(_outputs(*here, readers[:, :, piece], state))
        if goes_on or start + CHUNK < x.shape[1]:
            state = _state_behind(*here, state)
    y = torch.cat(outputs, 3) if len(outputs) > 1 else outputs[0]
    y = y.permute(0, 3, 1, 2, 4).reshape(x.shape).contiguous()  # Falcon-H1 takes views of it
    if D is not None:
        y = y + D.float()[:, None] * x
    return y, state.view(rows, heads, size, -1) if goes_on else None


def _outputs(x: Tensor, decay: Tensor, B: Tensor, C: Tensor, state: Tensor) -> Tensor:
    """Of one chunk: x [B, G, H / G, S, P], decay [B, G, H / G, S] summed up, B and C [B, G, S, N], state [B, G, (H / G) P, N]. -> like x"""
    causal = torch.ones(decay.shape[-1], decay.shape[-1], dtype=torch.bool, device=x.device).tril()
    between = (decay[..., :, None] - decay[..., None, :]).float().masked_fill(~causal, -torch.inf).exp()
    y = ((C @ B.transpose(-1, -2))[:, :, None] * between) @ x
    before = (C @ state.transpose(-1, -2)).unflatten(-1, (x.shape[2], x.shape[4])).transpose(2, 3)
    return y + decay.exp().float()[..., None] * before


def _state_behind(x: Tensor, decay: Tensor, B: Tensor, state: Tensor) -> Tensor:
    """The state behind the chunk, of the one in front of it."""
    left = (decay[..., -1:] - decay).exp().float()[..., None] * x
    kept = decay[..., -1].exp().float().repeat_interleave(x.shape[4], -1).flatten(2)[..., None]
    return kept * state + left.transpose(3, 4).flatten(2, 3) @ B
