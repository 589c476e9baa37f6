"""Block layout: many blocks in one row, so that one forward pass makes the proposals of all of them.

    index     0  1  2  3  4 | 5  6  7 | 8  9
    token     a  b  c  d  e | b  M  M | d  M        two blocks: anchor 1 with k = 3, anchor 3 with k = 2
    position  0  1  2  3  4 | 1  2  3 | 3  4
    sees      causal        | a, then its own block | a b c, then its own block

The real tokens appear once, at the start of the row. A block repeats its anchor and adds k - 1 masks M. It sees the
real tokens *before* its anchor and, causally, itself. Its k logits are the last k logits of a plain forward pass over
[tokens up to the anchor, k - 1 masks]. All logits that a loss needs are at the end of the row, for any anchors.

Short samples may share a row, as segments. Positions restart in each segment, and no segment sees another. The two
samples `a b c` and `d e`, with a block of k = 2 in each:

    index     0  1  2  3  4 | 5  6 | 7  8
    token     a  b  c  d  e | b  M | d  M
    segment   0  0  0  1  1 | 0  0 | 1  1           anchors are the indices 1 and 3
    position  0  1  2  0  1 | 1  2 | 0  1

Shapes: B rows, T real tokens (right-padded), M = sum of the ks, S = T + M.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

REAL, PADDING = -1, -2
Index = slice | Tensor


@dataclass(frozen=True)
class BlockBatch:
    """Rows of real tokens and blocks. Every row has the same ks, but its own anchors and segments.

    Invariant: `ids[:, T + m]` is the token at the block's anchor where `place[m] == 0` and the mask token elsewhere,
    and `positions[:, T + m]` is the position of the block's anchor + `place[m]`.
    """

    ids: Tensor  # [B, S] token ids
    positions: Tensor  # [B, S] true positions, in the token's own segment
    segment: Tensor  # [B, S] number of the sample that the token belongs to
    block: Tensor  # [B, S] number of the block, REAL, or PADDING
    anchor: Tensor  # [B, S] position of a block's anchor; for real tokens their own position
    target: Tensor  # [B, M] index in the row of the real token that this place predicts
    place: Tensor  # [M] 0 at an anchor, 1 .. k - 1 at masks
    block_of: Tensor  # [M] number of the block
    ks: tuple[int, ...]
    real: int  # T

    @property
    def slots(self) -> int:
        """M: how many logits at the end belong to blocks."""
        return len(self.place)

    def rule(self, queries: Index = slice(None), keys: Index = slice(None), *, anchors_repeated: bool = True) -> Tensor:
        """[B, Q, K] bool: which query may see which key, to be combined (and) with the model's own rule over positions.

        queries, keys: indices in the row. `anchors_repeated=False`: the blocks are fed without their anchors, and see
        the real tokens at the anchors instead.
        """
        block_q, block_kv = self.block[:, queries, None], self.block[:, None, keys]
        position_q, position_kv = self.positions[:, queries, None], self.positions[:, None, keys]
        anchor = self.anchor[:, queries, None]
        before = position_kv < anchor if anchors_repeated else position_kv <= anchor
        real = (block_kv == REAL) & before
        own = (block_kv == block_q) & (position_kv <= position_q)
        return (real | own) & (self.segment[:, queries, None] == self.segment[:, None, keys])

    def with_proposals(self, proposals: Tensor) -> Tensor:
        """Ids [B, S] with each mask replaced by the proposal for its position. proposals: [B, M], one per place.

        The mask at place j has the position of the token proposed at place j - 1 and is replaced by it. The last
        proposal of a block replaces no mask.
        """
        ids = self.ids.clone()
        masks = self.place > 0
        ids[:, self.real :][:, masks] = proposals[:, :-1][:, masks[1:]]
        return ids


def pack_blocks(
    tokens: Tensor,
    lengths: Sequence[int],
    anchors: Tensor,
    ks: Sequence[int],
    mask_id: int,
    *,
    segments: Tensor | None = None,
) -> BlockBatch:
    """Lay out blocks. tokens [B, T] right-padded, lengths of the rows, anchors [B, N] indices, ks [N] (>= 1 each).

    segments [B, T]: the number of the sample that each token belongs to. The tokens of a sample are next to each other.
    If not given, each row is one sample.
    """
    rows, real = tokens.shape
    device = tokens.device
    k = torch.tensor(list(ks), device=device)
    block_of = torch.repeat_interleave(torch.arange(len(ks), device=device), k)
    place = torch.cat([torch.arange(n, device=device) for n in ks])
    steps = torch.arange(real, device=device).expand(rows, -1)
    segment = torch.zeros_like(tokens) if segments is None else segments.to(device)
    positions = steps - _starts(segment, steps)
    index = anchors.to(device)[:, block_of]
    anchor = positions.gather(1, index)
    is_padding = steps >= torch.tensor(list(lengths), device=device)[:, None]
    return BlockBatch(
        ids=torch.cat([tokens, torch.where(place > 0, mask_id, tokens.gather(1, index))], 1),
        positions=torch.cat([positions, anchor + place], 1),
        segment=torch.cat([segment, segment.gather(1, index)], 1),
        block=torch.cat([torch.where(is_padding, PADDING, REAL), block_of.expand(rows, -1)], 1),
        anchor=torch.cat([positions, anchor], 1),
        target=index + place + 1,
        place=place,
        block_of=block_of,
        ks=tuple(ks),
        real=real,
    )


def _starts(segment: Tensor, steps: Tensor) -> Tensor:
    """The index at which each token's segment starts. Arguments and result are [B, T]."""
    is_first = torch.ones_like(segment, dtype=torch.bool)
    is_first[:, 1:] = segment[:, 1:] != segment[:, :-1]
    return torch.where(is_first, steps, 0).cummax(1).values
