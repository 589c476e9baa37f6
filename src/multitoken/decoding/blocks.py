"""Block layout: many blocks in one row, so that one forward pass proposes them all.

    index     0  1  2  3  4 | 5  6  7 | 8  9
    token     a  b  c  d  e | b  M  M | d  M        two blocks: anchor 1 with k = 3, anchor 3 with k = 2
    position  0  1  2  3  4 | 1  2  3 | 3  4
    sees      causal        | a, then its own block | a b c, then its own block

Real tokens stand once, in front. A block repeats its anchor and adds k - 1 masks M; it sees the real tokens *before* its
anchor and, causally, itself. Its k logits are what a plain forward pass over [tokens up to the anchor, k - 1 masks] gives
at its last k places. All logits that a loss needs stand at the end of the row, whatever the anchors.

Shapes: B rows, T real tokens (right-padded), M = sum of the ks, S = T + M.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

REAL, PADDING = -1, -2


@dataclass(frozen=True)
class BlockBatch:
    """Rows of real tokens and blocks. Every row has the same ks; anchors are its own.

    Invariant: `ids[:, T + m]` is the row's anchor token where `place[m] == 0` and the mask token elsewhere, and
    `positions[:, T + m]` is its anchor's position + `place[m]`.
    """

    ids: Tensor  # [B, S] token ids
    positions: Tensor  # [B, S] true positions
    block: Tensor  # [B, S] number of the block, REAL, or PADDING
    anchor: Tensor  # [B, S] a block's anchor position; for real tokens their own position
    place: Tensor  # [M] 0 at an anchor, 1 .. k - 1 at masks
    block_of: Tensor  # [M] number of the block
    ks: tuple[int, ...]
    real: int  # T

    @property
    def slots(self) -> int:
        """M: how many logits at the end belong to blocks."""
        return len(self.place)

    def rule(self) -> Tensor:
        """[B, S, S] bool: who may see whom, to be intersected with the model's own rule over positions."""
        block_q, block_kv = self.block[:, :, None], self.block[:, None, :]
        real = (block_kv == REAL) & (self.positions[:, None, :] < self.anchor[:, :, None])
        own = (block_kv == block_q) & (self.positions[:, None, :] <= self.positions[:, :, None])
        return real | own

    def with_proposals(self, proposals: Tensor) -> Tensor:
        """Ids [B, S] with each mask replaced by the proposal for its position. proposals: [B, M], one per place.

        The mask at place j stands where the token proposed at place j - 1 would: the last proposal of a block goes in
        nowhere.
        """
        ids = self.ids.clone()
        masks = self.place > 0
        ids[:, self.real :][:, masks] = proposals[:, :-1][:, masks[1:]]
        return ids


def pack_blocks(tokens: Tensor, lengths: Sequence[int], anchors: Tensor, ks: Sequence[int], mask_id: int) -> BlockBatch:
    """Lay out blocks. tokens [B, T] right-padded, lengths of the rows, anchors [B, N] positions, ks [N] (>= 1 each)."""
    rows, real = tokens.shape
    device = tokens.device
    k = torch.tensor(list(ks), device=device)
    block_of = torch.repeat_interleave(torch.arange(len(ks), device=device), k)
    place = torch.cat([torch.arange(n, device=device) for n in ks])
    steps = torch.arange(real, device=device)
    anchor = anchors.to(device)[:, block_of]
    anchor_ids = tokens.gather(1, anchor)
    is_padding = steps[None] >= torch.tensor(list(lengths), device=device)[:, None]
    return BlockBatch(
        ids=torch.cat([tokens, torch.where(place > 0, mask_id, anchor_ids)], 1),
        positions=torch.cat([steps.expand(rows, -1), anchor + place], 1),
        block=torch.cat([torch.where(is_padding, PADDING, REAL), block_of.expand(rows, -1)], 1),
        anchor=torch.cat([steps.expand(rows, -1), anchor], 1),
        place=place,
        block_of=block_of,
        ks=tuple(ks),
        real=real,
    )
