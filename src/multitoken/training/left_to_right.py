"""The draft head on packed blocks: states of all places, with the text's tokens before them or with the student's own.

Shapes: B rows, M slots (all blocks' places, one behind the other), N blocks of a row, D hidden, R rank, V vocabulary.
"""

import torch
from torch import Tensor

from multitoken.decoding.blocks import BlockBatch
from multitoken.decoding.draft_head import DraftHead, columns, unit

from .head import Head, Moved


def moved_by(drafter: DraftHead, student: Head, batch: BlockBatch, hidden: Tensor, tokens: Tensor) -> Moved:
    """The corrections of all places, given the token at every place. hidden [B, M, D], tokens [B, M]; a mask's state depends
    on the tokens at the earlier places of its block. Nothing is added at anchors."""
    slots, valid = _by_block(batch)
    rows = len(hidden)
    at_masks = hidden[:, slots]  # [B, N, J, D]
    before = student.embed(tokens[:, slots - 1])
    states = drafter.states(at_masks.flatten(0, 1), before.flatten(0, 1)).view(rows, *slots.shape, -1)
    everywhere = states.new_zeros(rows, batch.slots, drafter.rank)
    everywhere = everywhere.index_copy(1, slots[valid], states[:, valid])
    return Moved(everywhere, columns(drafter, student.model))


@torch.no_grad()
def propose(drafter: DraftHead, student: Head, batch: BlockBatch, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """The student's own tokens from left to right, as decoding chooses them, and their probabilities. -> [B, M], [B, M]"""
    tokens, sure = student.best_and_sure(hidden)
    slots, valid = _by_block(batch)
    moves = columns(drafter, student.model)
    state = hidden.new_zeros(len(hidden), len(slots), drafter.rank, dtype=torch.float32)
    for j in range(slots.shape[1]):
        here, there = slots[:, j], valid[:, j]
        fed = drafter.inputs(hidden[:, here]) + unit(student.embed(tokens[:, here - 1])) @ drafter.token.t()
        state = (fed + state @ drafter.state.t()).tanh()
        chosen, how_sure = student.best_and_sure(hidden[:, here[there]], Moved(state[:, there], moves))
        tokens[:, here[there]], sure[:, here[there]] = chosen, how_sure
    return tokens, sure


def _by_block(batch: BlockBatch) -> tuple[Tensor, Tensor]:
    """Slots of the masks of each block, [N, J], and which of them there are: of a shorter block the last one is repeated."""
    ks = torch.tensor(batch.ks, device=batch.place.device)
    place = torch.arange(1, max(batch.ks), device=ks.device)
    return (ks.cumsum(0) - ks)[:, None] + torch.minimum(place, ks[:, None] - 1), place < ks[:, None]
