"""Families that need more than an attention mask: their attention counts positions by index, their layers have different
sizes, their experts are given only their own tokens, or their latents are expanded again for all cached tokens."""

import pytest
import torch

from benchmarks.tiny_families import EOS, MASK, tiny_model
from multitoken.decoding import ConfAdapt, Decoder, Exact, NextToken
from multitoken.models.selftest import check_blocks, packed_error, some_tokens
from tests.parity.test_recurrent import PROMPTS, decoded, decoder_of, greedy, packed, separate, tokens, under_a_gate

BY_INDEX = ["bloom", "mpt", "falcon, ALiBi", "gpt_neo"]
FAMILIES = [*BY_INDEX, "gemma4_text", "llama4_text", "phimoe", "stablelm", "deepseek_v3", "jetmoe", "doge"]


@pytest.mark.parametrize("family", FAMILIES)
def test_exact_is_generate_in_a_ragged_batch(family: str) -> None:
    model = tiny_model(family)
    reference = [greedy(model, prompt) for prompt in PROMPTS[:3]]
    assert decoded(decoder_of(model), PROMPTS[:3], Exact(0.0)) == reference
    assert decoded(decoder_of(model), PROMPTS[:3], Exact(0.0, branches=4)) == reference
    check_blocks(model, MASK)


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_blocks_and_their_gradients_are_those_of_blocks_alone(family: str) -> None:
    model = tiny_model(family)
    ours, reference = packed(model, tokens()), separate(model, tokens())
    assert torch.allclose(ours, reference, atol=1e-3)
    weights = torch.randn(ours.shape, generator=torch.Generator().manual_seed(2))
    embedding = [model.get_input_embeddings().weight]
    (found,), (expected,) = (torch.autograd.grad((y * weights).sum(), embedding) for y in (ours, reference))
    assert torch.allclose(found, expected, atol=1e-3 * expected.abs().max().item())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_gate_leaves_the_original_models_text(family: str) -> None:
    """DeepSeek's latents are expanded for all cached keys at once. Guards against a bug: an update that was added to the last
    of them was added at real tokens."""
    bare, model = under_a_gate(family)
    plain = decoded(Decoder(bare, eos_ids=[EOS]), PROMPTS[:3], NextToken())
    ours = Decoder(model, mask_id=10_000, trained_k=6, eos_ids=[EOS])
    assert decoded(ours, PROMPTS[:3], Exact(0.0)) == plain
    assert decoded(ours, PROMPTS[:3], Exact(0.0, branches=4)) == plain
    assert decoded(ours, PROMPTS[:3], ConfAdapt(0.0)) != plain


@pytest.mark.parametrize("family", BY_INDEX)
def test_a_pass_that_is_not_ours_is_what_it_was(family: str) -> None:
    """The families' own functions are bypassed for attention masks that carry positions, and for no others."""
    model, untouched = tiny_model(family), tiny_model(family)
    ids = torch.tensor([[0, 0, 7, 8, 9, 10, 11, 12, 13], [20, 21, 22, 23, 24, 25, 26, 27, 28]])
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    with torch.inference_mode():
        packed_error(model, some_tokens(model, MASK), MASK)
        ours = model(input_ids=ids, attention_mask=mask).logits
        assert torch.equal(ours, untouched(input_ids=ids, attention_mask=mask).logits)
