"""Our searches over the vocabulary must give the same results as torch's."""

import torch

from multitoken.decoding.likeliest import argmax, top_and_confidence


def test_top_and_confidence() -> None:
    logits = torch.randn(2, 3, 501)
    logits[0, 0, 17] = logits[0, 0, 400] = 9.0  # the first of equal ones is the top
    logits[1, 2] = torch.nan
    top, confidence = top_and_confidence(logits)
    assert top[0, 0] == 17 and torch.equal(top[:, :2], logits.argmax(-1)[:, :2])
    assert torch.allclose(confidence[:, :2], logits.softmax(-1).max(-1).values[:, :2])
    assert confidence[1, 2].isnan()
    assert torch.equal(argmax(logits[:1].bfloat16()), logits[:1].bfloat16().argmax(-1))
