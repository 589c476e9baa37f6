"""The block layout must be exactly that of the worked example in the docstring."""

import torch

from multitoken.decoding.blocks import PADDING, REAL, pack_blocks

M = 99


def example():
    tokens = torch.tensor([[10, 11, 12, 13, 14]])
    return pack_blocks(tokens, [5], torch.tensor([[1, 3]]), (3, 2), M)


def test_worked_example() -> None:
    """With positions or anchors that are off by one, the wrong tokens would be trained without any error message."""
    batch = example()
    assert batch.ids.tolist() == [[10, 11, 12, 13, 14, 11, M, M, 13, M]]
    assert batch.positions.tolist() == [[0, 1, 2, 3, 4, 1, 2, 3, 3, 4]]
    assert batch.block.tolist() == [[REAL] * 5 + [0, 0, 0, 1, 1]]
    assert batch.place.tolist() == [0, 1, 2, 0, 1]
    assert (batch.slots, batch.real) == (5, 5)


def test_rule_of_the_worked_example() -> None:
    """A block that sees the real token at its anchor, a later one, or another block would be told the answer."""
    expected = [
        "1000000000",
        "1100000000",
        "1110000000",
        "1111000000",
        "1111100000",
        "1000010000",
        "1000011000",
        "1000011100",
        "1110000010",
        "1110000011",
    ]
    rule = example().rule()[0]
    positions = example().positions[0]
    causal = positions[None, :] <= positions[:, None]
    assert ["".join(str(int(x)) for x in row) for row in (rule & causal)] == expected


def test_proposals_stand_where_the_next_masks_were() -> None:
    """The teacher reads the student's tokens shifted by one: the proposal at position j of a block is the input at j +
    1."""
    proposals = torch.tensor([[50, 51, 52, 60, 61]])
    assert example().with_proposals(proposals).tolist() == [[10, 11, 12, 13, 14, 11, 50, 51, 13, 60]]


def test_padding_is_seen_by_nobody() -> None:
    """Right padding in a batch of different lengths must not leak into blocks."""
    tokens = torch.tensor([[10, 11, 12, 0, 0]])
    batch = pack_blocks(tokens, [3], torch.tensor([[2]]), (2,), M)
    assert batch.block.tolist() == [[REAL] * 3 + [PADDING] * 2 + [0, 0]]
    assert batch.rule()[0, 5:, 3:5].sum() == 0


def test_worked_example_of_segments() -> None:
    """Two samples in a row: the second starts at position 0, and its blocks see nothing of the first."""
    segments = torch.tensor([[0, 0, 0, 1, 1]])
    tokens = torch.tensor([[10, 11, 12, 13, 14]])
    batch = pack_blocks(tokens, [5], torch.tensor([[1, 3]]), (2, 2), M, segments=segments)
    assert batch.ids.tolist() == [[10, 11, 12, 13, 14, 11, M, 13, M]]
    assert batch.segment.tolist() == [[0, 0, 0, 1, 1, 0, 0, 1, 1]]
    assert batch.positions.tolist() == [[0, 1, 2, 0, 1, 1, 2, 0, 1]]
    assert batch.target.tolist() == [[2, 3, 4, 5]]
    expected = [
        "100000000",
        "110000000",
        "111000000",
        "000100000",
        "000110000",
        "100001000",
        "100001100",
        "000000010",
        "000000011",
    ]
    assert ["".join(str(int(x)) for x in row) for row in batch.rule()[0]] == expected


def test_rule_of_blocks_without_their_anchors() -> None:
    """Masks after a cached prefix see the real token at their anchor, which is not fed again, and no real token after
    it."""
    masks = torch.tensor([6, 7, 9])
    rule = example().rule(masks, torch.cat([torch.arange(5), masks]), anchors_repeated=False)
    assert ["".join(str(int(x)) for x in row) for row in rule[0]] == ["11000100", "11000110", "11110001"]
