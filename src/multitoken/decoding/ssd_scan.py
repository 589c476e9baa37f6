"""The scan of Mamba-2 for CPUs: state space duality, arXiv 2405.21060, section 6, one chunk after the other.

transformers' own scan, which runs where its fused kernels do not, repeats B and C for every head of a group and pads to whole
chunks. Decoding steps and pieces in training are only a few tokens long, so most of its time went into copies.

Shapes: B rows, S tokens, H heads in G groups, P numbers per head, N numbers per state. Here a state is [B, G, N, (H / G) P], so
that tokens are read and written in memory order.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .scan_states import AnyState, by_chunks, decays, sums_until


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
    leaves_last: bool = True,
    leaves_any: bool = False,
) -> tuple[Tensor, Tensor | None, AnyState | None]:
    """x [B, S, H, P], dt [B, S, H], A [H], B and C [B, S, G, N], D [H], initial_states [B, H, P, N].
    -> (y [B, S, H, P], the states [B, H, P, N] after the last token, those after any token), float32; None for what is not left."""
    rows, length, heads, size = x.shape
    groups, each = B.shape[2], heads // B.shape[2]
    if dt_bias is not None:
        dt = dt + dt_bias.to(dt.dtype)
    dt = (F.softplus(dt) if dt_softplus else dt).clamp(*dt_limit).float()
    x = x.float()
    if initial_states is None:
        state = x.new_zeros(rows, groups, B.shape[3], each * size)
    else:
        state = initial_states.float().reshape(rows, groups, each * size, -1).transpose(2, 3)
    # Decays multiply, so their logarithms are summed. They are float64 because differences of long sums are taken.
    decay = A.double() * dt.double()  # [B, S, H]
    moved = x * dt[..., None]
    inputs, readers = B.float().transpose(1, 2), C.float().transpose(1, 2)  # [B, G, S, N]

    def run(piece: slice, state: Tensor) -> tuple[_Chunk, Tensor]:
        chunk = _Chunk(moved[:, piece], decay[:, piece].cumsum(1), inputs[:, :, piece], state)
        return chunk, chunk.outputs(readers[:, :, piece])

    outputs, state, states = by_chunks(length, state, run, leaves_last=leaves_last, leaves_any=leaves_any)
    y = torch.cat(outputs, 1) if len(outputs) > 1 else outputs[0].contiguous()  # Falcon-H1 takes views of it
    if D is not None:
        y = torch.addcmul(y, D.float()[:, None], x)
    return y, _as_given(state, heads) if leaves_last else None, states


@dataclass(frozen=True)
class _Chunk:
    x: Tensor  # [B, S, H, P], times dt
    decay: Tensor  # [B, S, H] cumulative sums of logarithms
    B: Tensor  # [B, G, S, N]
    state: Tensor  # [B, G, N, (H / G) P]

    def outputs(self, C: Tensor) -> Tensor:
        """C [B, G, S, N] -> y [B, S, H, P]"""
        between = decays(self.decay.transpose(1, 2)).unflatten(1, (C.shape[1], -1))  # [B, G, H / G, S, S]
        alike = (C @ self.B.transpose(-1, -2))[:, :, None]
        within = (alike * between).flatten(1, 2) @ self.x.transpose(1, 2)
        before = (C @ self.state).transpose(1, 2).reshape(self.x.shape)
        return torch.addcmul(within.transpose(1, 2), self.decay.exp().float()[..., None], before)

    def state_behind(self) -> Tensor:
        last = self.decay[:, -1]
        return _carried(self.x, last[:, None] - self.decay, self.B, self.state, last)

    def states_at(self, rows: Tensor, behind: Tensor) -> Tensor:
        last, left = sums_until(self.decay, rows, behind)
        return _as_given(_carried(self.x[rows], left, self.B[rows], self.state[rows], last), self.x.shape[2])


def _carried(x: Tensor, left: Tensor, B: Tensor, state: Tensor, kept: Tensor) -> Tensor:
    """The sum of what is left of the tokens, by decays `left` [B, S, H], and of the state before them, by decays `kept` [B, H]."""
    moved = left.exp().float()[..., None] * x
    added = B.transpose(-1, -2) @ moved.unflatten(2, (B.shape[1], -1)).transpose(1, 2).flatten(3)
    fading = kept.exp().float().repeat_interleave(x.shape[3], -1).unflatten(1, (B.shape[1], 1, -1))
    return torch.addcmul(added, fading, state)


def _as_given(state: Tensor, heads: int) -> Tensor:
    """[B, G, N, (H / G) P] -> [B, H, P, N]"""
    rows, groups, numbers, wide = state.shape
    return state.transpose(2, 3).reshape(rows, heads, groups * wide // heads, numbers)
