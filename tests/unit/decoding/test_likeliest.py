"""Looks over the vocabulary say what torch's say."""

import pytest
import torch

from multitoken.decoding.likeliest import argmax, top_and_confidence, topk


@pytest.mark.parametrize("vocabulary", [7, 61, 2048, 8192, 12288, 50257])
def test_topk(vocabulary: int) -> None:
    scores = torch.randn(3, 5, vocabulary)
    scores[0, 0, : vocabulary // 2] = -torch.inf
    for k in (1, 32):
        values, places = topk(scores, k)
        expected = scores.topk(min(k, vocabulary), -1)
        assert torch.equal(values, expected.values)
        assert torch.equal(scores.gather(-1, places), values)
        assert all(len(set(row.tolist())) == min(k, vocabulary) for row in places.flatten(0, -2))


def test_topk_where_few_groups_hold_all() -> None:
    """The highest may be neighbours, or each in another group."""
    scores = torch.zeros(2, 16384)
    scores[0, 100:132] = torch.arange(32.0) + 1
    scores[1, ::512] = torch.arange(32.0) + 1
    values, places = topk(scores, 32)
    assert places[0].tolist() == list(range(131, 99, -1))
    assert places[1].tolist() == [512 * i for i in range(31, -1, -1)]
    assert torch.equal(values[0], values[1])


def test_top_and_confidence() -> None:
    logits = torch.randn(2, 3, 501)
    logits[0, 0, 17] = logits[0, 0, 400] = 9.0  # the first of equals
    logits[1, 2] = torch.nan
    top, confidence = top_and_confidence(logits)
    assert top[0, 0] == 17 and torch.equal(top[:, :2], logits.argmax(-1)[:, :2])
    assert torch.allclose(confidence[:, :2], logits.softmax(-1).max(-1).values[:, :2])
    assert confidence[1, 2].isnan()
    assert torch.equal(argmax(logits[:1].bfloat16()), logits[:1].bfloat16().argmax(-1))
