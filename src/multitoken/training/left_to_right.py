"""The draft head on packed blocks: states of all places, with the text's tokens before them or with the student's own.

Shapes: B rows, M slots (all blocks' places, one behind the other), N blocks of a row, J masks of the longest, D hidden, R rank,
V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from multitoken.decoding.blocks import BlockBatch
from multitoken.decoding.draft_head import DraftHead, unit

from .head import Head, Moved


@dataclass(frozen=True)
class Suggested:
    """What the text in front of each block suggests for its masks: copied [B, N, J] tokens, alike [B, N]
    (`decoding/copying.py`)."""

    copied: Tensor
    alike: Tensor


def moved_by(
    drafter: DraftHead,
    columns: Tensor,
    student: Head,
    batch: BlockBatch,
    hidden: Tensor,
    tokens: Tensor,
    suggested: Suggested,
) -> Moved:
    """The corrections of all places, given the token at every place. columns [V, R]: W U; hidden [B, M, D], tokens [B, M]; a
    mask's state depends on the tokens at the earlier places of its block. Nothing is added at anchors."""
    slots, valid = _by_block(batch)
    rows = len(hidden)
    at_masks = hidden[:, slots]  # [B, N, J, D]
    before = student.embed(tokens[:, slots - 1])
    copied = student.embed(suggested.copied)
    alike = suggested.alike.flatten()
    states = drafter.states(at_masks.flatten(0, 1), before.flatten(0, 1), copied.flatten(0, 1), alike)
    gains = alike[:, None] * (states @ drafter.gain)
    moved = Moved(states, suggested.copied.flatten(0, 1), gains, columns).shaped(rows, *slots.shape)
    return moved.everywhere(batch.slots, slots, valid)


@torch.no_grad()
def propose(
    drafter: DraftHead, columns: Tensor, student: Head, batch: BlockBatch, hidden: Tensor, suggested: Suggested
) -> Tensor:
    """The student's own tokens from left to right, as decoding chooses them. columns, hidden: as above. -> [B, M]"""
    tokens = student.best(hidden)
    slots, valid = _by_block(batch)
    state = hidden.new_zeros(len(hidden), len(slots), drafter.rank, dtype=torch.float32)
    alike = suggested.alike[..., None]
    copies = alike[..., None] * drafter.copies(student.embed(suggested.copied))
    for j in range(slots.shape[1]):
        here, there = slots[:, j], valid[:, j]
        before = unit(student.embed(tokens[:, here - 1]))
        fed = drafter.inputs(hidden[:, here]) + F.linear(before, drafter.token) + copies[:, :, j]
        state = drafter.advance(state, fed)
        gains = alike[..., 0] * (state @ drafter.gain)
        moved = Moved(state[:, there], suggested.copied[:, there, j], gains[:, there], columns)
        tokens[:, here[there]] = student.best(hidden[:, here[there]], moved)
    return tokens


def _by_block(batch: BlockBatch) -> tuple[Tensor, Tensor]:
    """Slots of the masks of each block, [N, J], and which of them there are: of a shorter block the last one is repeated."""
    ks = torch.tensor(batch.ks, device=batch.place.device)
    place = torch.arange(1, max(batch.ks), device=ks.device)
    return (ks.cumsum(0) - ks)[:, None] + torch.minimum(place, ks[:, None] - 1), place < ks[:, None]
