"""The states after any tokens of a scan that goes chunk by chunk. Each chunk keeps the state that it started from, so one more
product gives the state after any token in it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK = 32  # tokens that see each other directly; a chunk's table grows with the square of this number


class Chunk(Protocol):
    """Tokens that see each other directly, and the state before them."""

    def state_behind(self) -> Tensor:
        """The state after its last token."""
        ...

    def states_at(self, rows: Tensor, behind: Tensor) -> Tensor:
        """The states [W, ...] of its rows `rows` [W], each after the first `behind` [W] tokens of the chunk."""
        ...


@dataclass(frozen=True)
class AnyState:
    """The states after any token of the rows of a scan."""

    chunks: Sequence[Chunk]

    def at(self, rows: Tensor, behind: Tensor) -> Tensor:
        """The states [W, ...] of its rows `rows` [W], each after the first `behind` [W] tokens of the row."""
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
    """Run a scan chunk by chunk. run: takes a slice of the tokens and the state before them, and returns the chunk and its outputs.
    -> (all outputs, the state after the last token if `leaves_last`, the states after any token if `leaves_any`, else None)"""
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
    """How much of itself and of every earlier token is left at each token: sums [..., S] of logarithms -> [..., S, S], 0 for later ones."""
    causal = torch.ones(sums.shape[-1], sums.shape[-1], dtype=torch.bool, device=sums.device).tril()
    return (sums[..., :, None] - sums[..., None, :]).float().masked_fill(~causal, -torch.inf).exp()


def sums_until(sums: Tensor, rows: Tensor, behind: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of logarithms [B, S, H] -> the sums over the first `behind` [W] tokens of `rows` [W], [W, H], and these minus the sum up
    to each token, [W, S, H], which is -inf for tokens that are not among the first `behind`."""
    until = F.pad(sums, (0, 0, 1, 0))[rows, behind]
    counts = torch.arange(sums.shape[1], device=behind.device) < behind[:, None]
    return until, (until[:, None] - sums[rows]).masked_fill(~counts[..., None], -torch.inf)
