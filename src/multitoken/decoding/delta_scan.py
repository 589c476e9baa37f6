"""The scan of gated delta nets for CPUs: arXiv 2412.06464, section 3.3, one chunk after the other.

Transformers' own scan leaves only the state after the last token. With it, blocks would have to start from states at a
few borders, and steps would have to run tokens again. It also pads to whole chunks.

Shapes: B rows, S tokens, H value heads, G key heads (each shared by H / G value heads), K size of a key, V size of a
value.
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
    """query and key [B, S, G, K], value [B, S, H, V], g (logarithms of decays) and beta [B, S, H], initial_state
    [B, H, K, V]. -> (y [B, S, H, V] in value's dtype, the state after the last token, the states after any token).

    States are float32. The state or states are None where `leaves_last` or `leaves_any` is False.
    """
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
    """[B, S, G, K] -> [B, H, S, K] float32. If `scaled`, each vector has length 1."""
    x = x.float()
    if scaled:
        x = x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6)
    return x.transpose(1, 2).repeat_interleave(heads // x.shape[2], 1)


@dataclass(frozen=True)
class _Chunk:
    key: Tensor  # [B, H, S, K]
    written: Tensor  # [B, H, S, V], what each token adds at its key: its value minus what is already there
    decay: Tensor  # [B, H, S] cumulative sums of logarithms
    state: Tensor  # [B, H, K, V]
    between: Tensor  # [B, H, S, S]

    @classmethod
    def of(cls, key: Tensor, value: Tensor, decay: Tensor, beta: Tensor, state: Tensor) -> "_Chunk":
        between = decays(decay)
        # What a token finds at its key was left by the state and the tokens before it: solved for all tokens at once.
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
    """The sum of what is left of the tokens, after decays `left` [B, H, S], and of the state before them, after decays
    `kept` [B, H]. Both decays are logarithms."""
    added = (key * left.exp().float()[..., None]).transpose(-1, -2) @ written
    return torch.addcmul(added, kept.exp().float()[..., None, None], state)
