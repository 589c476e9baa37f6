"""The scan of gated delta nets for CPUs: arXiv 2412.06464, section 3.3, one chunk after the other.

transformers' own leaves the state behind the last token only, so that blocks would have to start from states at a few borders, and
steps to run tokens again; and it pads to whole chunks.

Shapes: B rows, S tokens, H heads of values, each of which has its share of the G heads of keys; K numbers of a key, V of a value.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .scan_states import AnyState, by_chunks, decays, sums_until


def scan(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    g: Tensor,
    beta: Tensor,
    initial_state: Tensor | None = None,
    use_qk_l2norm_in_kernel: bool = False,
    leaves_last: bool = True,
    leaves_any: bool = False,
) -> tuple[Tensor, Tensor | None, AnyState | None]:
    """query and key [B, S, G, K], value [B, S, H, V], g (logarithms of decays) and beta [B, S, H], initial_state [B, H, K, V].
    -> (y [B, S, H, V] in value's type, the states behind the last token, those behind any), float32; None for what is not to be left."""
    heads = value.shape[2]
    query, key = (_by_head(x, heads, scaled=use_qk_l2norm_in_kernel) for x in (query, key))  # [B, H, S, K]
    query = query * query.shape[-1] ** -0.5
    values, beta, g = value.float().transpose(1, 2), beta.float().transpose(1, 2)[..., None], g.double().transpose(1, 2)
    if initial_state is None:
        state = values.new_zeros(len(values), heads, key.shape[-1], values.shape[-1])
    else:
        state = initial_state.float()

    def run(piece: slice, state: Tensor) -> tuple[_Chunk, Tensor]:
        chunk = _Chunk.of(key[:, :, piece], values[:, :, piece], g[:, :, piece].cumsum(-1), beta[:, :, piece], state)
        return chunk, chunk.outputs(query[:, :, piece])

    outputs, state, states = by_chunks(values.shape[2], state, run, leaves_last=leaves_last, leaves_any=leaves_any)
    y = torch.cat(outputs, 2).transpose(1, 2).contiguous().to(value.dtype)
    return y, state if leaves_last else None, states


def _by_head(x: Tensor, heads: int, *, scaled: bool) -> Tensor:
    """[B, S, G, K] -> [B, H, S, K] float32, each of length 1 if they are to be scaled."""
    x = x.float()
    if scaled:
        x = x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6)
    return x.transpose(1, 2).repeat_interleave(heads // x.shape[2], 1)


@dataclass(frozen=True)
class _Chunk:
    key: Tensor  # [B, H, S, K]
    written: Tensor  # [B, H, S, V], what each token adds at its key: its value less what is there already
    decay: Tensor  # [B, H, S] logarithms, summed up
    state: Tensor  # [B, H, K, V]
    between: Tensor  # [B, H, S, S]

    @classmethod
    def of(cls, key: Tensor, value: Tensor, decay: Tensor, beta: Tensor, state: Tensor) -> "_Chunk":
        between = decays(decay)
        # A token finds what the state and the tokens before it have left at its key: solved for all of them at once.
        weighted = key * beta
        found = (weighted * decay.exp().float()[..., None]) @ state
        each_other = (weighted @ key.transpose(-1, -2)) * between
        written = torch.linalg.solve_triangular(each_other, value * beta - found, upper=False, unitriangular=True)
        return cls(key, written, decay, state, between)

    def outputs(self, query: Tensor) -> Tensor:
        """query [B, H, S, K] -> [B, H, S, V]"""
        within = ((query @ self.key.transpose(-1, -2)) * self.between) @ self.written
        return within + (query * self.decay.exp().float()[..., None]) @ self.state

    def state_behind(self) -> Tensor:
        last = self.decay[..., -1]
        return _carried(self.key, self.written, last[..., None] - self.decay, self.state, last)

    def states_at(self, rows: Tensor, behind: Tensor) -> Tensor:
        last, left = sums_until(self.decay.transpose(1, 2), rows, behind)
        return _carried(self.key[rows], self.written[rows], left.transpose(1, 2), self.state[rows], last)


def _carried(key: Tensor, written: Tensor, left: Tensor, state: Tensor, kept: Tensor) -> Tensor:
    """What is left of the tokens, by decays [B, H, S], and of the state in front of them, by decays [B, H]."""
    added = (key * left.exp().float()[..., None]).transpose(-1, -2) @ written
    return torch.addcmul(added, kept.exp().float()[..., None, None], state)
