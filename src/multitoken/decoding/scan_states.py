"""The states behind any tokens of a scan that goes chunk by chunk: each chunk kept what it started from, so one product more gives
the state behind a token in it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK = 32  # tokens that see each other directly; the table of a chunk grows with their square


class Chunk(Protocol):
    """Tokens that see each other directly, and the state in front of them."""

    def state_behind(self) -> Tensor:
        """That behind its last token."""
        ...

    def states_at(self, rows: Tensor, behind: Tensor) -> Tensor:
        """[W, ...] of these of its rows [W], each behind so many of its tokens [W]."""
        ...


@dataclass(frozen=True)
class AnyState:
    """Those of the rows of a scan."""

    chunks: Sequence[Chunk]

    def at(self, rows: Tensor, behind: Tensor) -> Tensor:
        """[W, ...] of these of its rows [W], each behind so many of its tokens [W]."""
        if len(self.chunks) == 1:
            return self.chunks[0].states_at(rows, behind)
        of_chunk = (behind - 1).clamp_min(0) // CHUNK
        found, places = [], []
        for number, chunk in enumerate(self.chunks):
            here = (of_chunk == number).nonzero()[:, 0]
            found.append(chunk.states_at(rows[here], behind[here] - number * CHUNK))
            places.append(here)
        return torch.cat(found)[torch.cat(places).argsort()]


def by_chunks(
    length: int,
    state: Tensor,
    run: Callable[[slice, Tensor], tuple[Chunk, Tensor]],
    *,
    leaves_last: bool,
    leaves_any: bool,
) -> tuple[list[Tensor], Tensor, AnyState | None]:
    """run: of these tokens, from the state in front of them, the chunk and its outputs. -> (all outputs, the state behind the last token
    if it is to be left, those behind any or None)"""
    outputs, chunks = [], []
    for start in range(0, length, CHUNK):
        chunk, y = run(slice(start, start + CHUNK), state)
        outputs.append(y)
        if leaves_any:
            chunks.append(chunk)
        if leaves_last or start + CHUNK < length:
            state = chunk.state_behind()
    return outputs, state, AnyState(chunks) if leaves_any else None


def decays(sums: Tensor) -> Tensor:
    """What is left at each token of every token before it, and of itself: sums [..., S] of logarithms -> [..., S, S], 0 behind."""
    causal = torch.ones(sums.shape[-1], sums.shape[-1], dtype=torch.bool, device=sums.device).tril()
    return (sums[..., :, None] - sums[..., None, :]).float().masked_fill(~causal, -torch.inf).exp()


def sums_until(sums: Tensor, rows: Tensor, behind: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of logarithms [B, S, H] -> those until each of `behind` [W] tokens of `rows` [W], [W, H], and less what stands before each
    token, [W, S, H]: -inf for tokens that are not before it."""
    until = F.pad(sums, (0, 0, 1, 0))[rows, behind]
    counts = torch.arange(sums.shape[1], device=behind.device) < behind[:, None]
    return until, (until[:, None] - sums[rows]).masked_fill(~counts[..., None], -torch.inf)
