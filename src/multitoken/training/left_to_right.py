"""The draft head on packed blocks: its states at all slots, given the text's earlier tokens or the student's own.

Shapes: B rows, M slots (the positions of all blocks, one after the other), N blocks of a row, D hidden, R rank,
V vocabulary.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from multitoken.decoding.blocks import BlockBatch
from multitoken.decoding.draft_head import DraftHead, unit

from .head import Head, Moved


def moved_by(
    drafter: DraftHead, columns: Tensor, student: Head, batch: BlockBatch, hidden: Tensor, tokens: Tensor
) -> Moved:
    """The corrections at all slots, given the token at every slot. columns [V, R]: W U; hidden [B, M, D], tokens [B, M].
    A mask's state depends on the tokens at the earlier positions of its block. Nothing is added at anchors."""
    slots, valid = _by_block(batch)
    rows = len(hidden)
    at_masks = hidden[:, slots]  # [B, N, J, D]
    before = student.embed(tokens[:, slots - 1])
    states = drafter.states(at_masks.flatten(0, 1), before.flatten(0, 1)).view(rows, *slots.shape, -1)
    everywhere = states.new_zeros(rows, batch.slots, drafter.rank)
    return Moved(everywhere.index_copy(1, slots[valid], states[:, valid]), columns)


@torch.no_grad()
def propose(drafter: DraftHead, columns: Tensor, student: Head, batch: BlockBatch, hidden: Tensor) -> Tensor:
    """The student's own tokens, chosen from left to right as in decoding. columns, hidden: as above. -> [B, M]"""
    tokens = student.best(hidden)
    slots, valid = _by_block(batch)
    state = hidden.new_zeros(len(hidden), len(slots), drafter.rank, dtype=torch.float32)
    for j in range(slots.shape[1]):
        here, there = slots[:, j], valid[:, j]
        before = unit(student.embed(tokens[:, here - 1]))
        state = drafter.advance(state, drafter.inputs(hidden[:, here]) + F.linear(before, drafter.token))
        tokens[:, here[there]] = student.best(hidden[:, here[there]], Moved(state[:, there], columns))
    return tokens


def _by_block(batch: BlockBatch) -> tuple[Tensor, Tensor]:
    """Slots of the masks of each block, [N, J], and which of them exist: a shorter block repeats its last one."""
    ks = torch.tensor(batch.ks, device=batch.place.device)
    place = torch.arange(1, max(batch.ks), device=ks.device)
    return (ks.cumsum(0) - ks)[:, None] + torch.minimum(place, ks[:, None] - 1), place < ks[:, None]
