"""The blocks of a step's rows through the draft head: rows whose tokens are chosen in the same way go side by side.

A row whose drafts all hold drafts from the masks of this step. One whose draft was rejected has fed its masks in vain, but
those of its last good block have seen nothing wrong: what is left of that block is drafted again, from the right token.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .draft_head import Block, Drafter
from .row import Remains, Row
from .sampling import noise_key, scale_free, signed


@dataclass
class Picks:
    """What a row's wanted places say: tokens and confidences, those at masks still to be corrected. `line`: of the logits."""

    line: int
    row: Row
    masks: int
    tokens: list[int]
    confidences: list[float]


@dataclass(frozen=True)
class _Work:
    """A block to be drafted: the token in front of it, and the state that this token is added to (None: none yet)."""

    pick: Picks
    held: int
    block: Block
    state: Tensor | None

    @property
    def places(self) -> int:
        return len(self.block.rest)


def way_of(row: Row) -> Hashable | None:
    """How a row chooses its tokens; None where its processors look at token ids, so that it drafts without the head."""
    if row.request.seed is None and not row.request.processors:
        return "greedy"
    signature = scale_free(row.request.processors)
    return None if signature is None else (row.request.seed is not None, signature)


def draft_blocks(drafter: Drafter, picks: Sequence[Picks], logits: Tensor, hidden: Tensor | None) -> None:
    """Correct the picks at masks, or behind a rejected draft put new drafts in their place. logits [B, W, V] and hidden
    [B, W, D] of the wanted places; no hidden states where nobody fed masks."""
    most = max((pick.masks for pick in picks), default=0)
    fresh = drafter.block(hidden[:, -most:], logits[:, -most:]) if most and hidden is not None else None
    groups: dict[Hashable, list[_Work]] = {}
    for pick in picks:
        row, way = pick.row, way_of(pick.row)
        if way is None:
            continue
        held, remains = row.held(pick.tokens), row.remains
        if held == len(row.drafts):
            row.remains = None
            if pick.masks and fresh is not None:
                block = fresh.part((pick.line, slice(most - pick.masks, most)))
                groups.setdefault(way, []).append(_Work(pick, held, block, None))
        elif remains is not None and len(remains.states) > held + 1:
            block = remains.block.part(slice(held + 1, None))
            groups.setdefault(way, []).append(_Work(pick, held, block, remains.states[held]))
        else:
            row.remains = None
    for group in groups.values():
        _draft(drafter, group)


def _draft(drafter: Drafter, group: Sequence[_Work]) -> None:
    most = max(work.places for work in group)
    device = group[0].block.fed.device
    request = group[0].pick.row.request
    nothing = drafter.no_state(1)[0]
    drafts = drafter.draft(
        Block.side_by_side([work.block for work in group]),
        torch.tensor([work.pick.tokens[work.held] for work in group], device=device),
        torch.stack([nothing if work.state is None else work.state for work in group]),
        warp=lambda scores: request.processors(scores.new_zeros(len(scores), 1, dtype=torch.long), scores),  # pyright: ignore[reportArgumentType]
        keys=None
        if request.seed is None
        else torch.tensor([[_key(work, j) for j in range(most)] for work in group], device=device),
    )
    tokens, sure = drafts.tokens.tolist(), drafts.confidences.tolist()
    for i, work in enumerate(group):
        pick, n = work.pick, work.places
        pick.row.remains = Remains(work.block, drafts.states[i, :n])
        if work.held == len(pick.row.drafts):
            pick.tokens[-n:], pick.confidences[-n:] = tokens[i][:n], sure[i][:n]
        else:
            pick.row.again = tokens[i][:n], sure[i][:n]


def _key(work: _Work, j: int) -> int:
    """Of the noise at place j of the block, counted from 0."""
    row = work.pick.row
    assert row.request.seed is not None
    return signed(noise_key(row.request.seed, row.request.noise_row, len(row.ids) + work.held + 1 + j))
