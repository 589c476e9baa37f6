"""The packed forward pass equals one plain forward pass per block: logits and gradients, for every attention family."""

import pytest
import torch

from multitoken.decoding.attention import AttentionRule
from multitoken.decoding.blocks import pack_blocks
from multitoken.errors import UnsupportedModelError
from multitoken.models.selftest import check_blocks
from tests.parity.families import MASK, REFUSED, SUPPORTED

LENGTHS, KS = (20, 14), (4, 2, 3)
ANCHORS = torch.tensor([[3, 19, 11], [0, 6, 13]])


def packed_logits(model, tokens):
    batch = pack_blocks(tokens, LENGTHS, ANCHORS, KS, MASK)
    masks = AttentionRule(model).between(batch.positions, batch.positions, batch.rule())
    return model(
        input_ids=batch.ids, attention_mask=masks, position_ids=batch.positions, use_cache=False,
        logits_to_keep=batch.slots,
    ).logits[:, -batch.slots :]  # fmt: skip


def separate_logits(model, tokens):
    """The slow reference: each block alone, as [tokens up to the anchor | masks], without padding or packing."""
    rows = []
    for row, anchors in zip(tokens, ANCHORS, strict=True):
        blocks = []
        for anchor, k in zip(anchors, KS, strict=True):
            ids = torch.cat([row[: anchor + 1], torch.full((k - 1,), MASK)])[None]
            blocks.append(model(input_ids=ids, use_cache=False).logits[0, -k:])
        rows.append(torch.cat(blocks))
    return torch.stack(rows)


@pytest.mark.parametrize("family", SUPPORTED)
def test_packed_equals_separate(family: str) -> None:
    """Right padding, and other anchors in each row. A wrong mask or position changes logits by 1 or more.

    Parameters are float64, but norms and rotary angles are still computed in float32. The tolerance is therefore 1e-4 of
    the spread and not 1e-9.
    """
    model = SUPPORTED[family]().double()
    tokens = torch.randint(6, 90, (2, 20), generator=torch.Generator().manual_seed(1))
    tokens[1, LENGTHS[1] :] = 0
    ours, reference = packed_logits(model, tokens), separate_logits(model, tokens)
    assert reference.std() > 0.3, "logits too flat to show a wrong mask"
    assert torch.allclose(ours, reference, atol=1e-4 * reference.std().item())

    weights = torch.randn(ours.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    parameters = [p for p in model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad((ours * weights).sum(), parameters, allow_unused=True)
    expected = torch.autograd.grad((reference * weights).sum(), parameters, allow_unused=True)
    for ours_g, expected_g in zip(gradients, expected, strict=True):
        assert (ours_g is None) == (expected_g is None)
        if ours_g is not None:
            assert torch.allclose(ours_g, expected_g, atol=1e-4 * expected_g.abs().max().item())


@pytest.mark.parametrize("family", SUPPORTED)
def test_self_test_accepts(family: str) -> None:
    """If the self-test refused a family that works, no other test would notice."""
    check_blocks(SUPPORTED[family](), MASK)


@pytest.mark.parametrize("family", REFUSED)
def test_self_test_refuses_families_that_would_decode_wrongly(family: str) -> None:
    """These accept a block mask without an error and answer wrongly, although real tokens look right."""
    with pytest.raises(UnsupportedModelError):
        check_blocks(REFUSED[family](), MASK)
