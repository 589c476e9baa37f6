"""What the self-test of a model accepts and what it refuses, in every type, and how many positions a model has."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from multitoken.decoding import Decoder, DecodingError, Exact, NextToken
from multitoken.decoding.attention import AttentionRule
from multitoken.decoding.positions import position_limit
from multitoken.errors import UnsupportedModelError
from multitoken.models import selftest
from multitoken.models.selftest import check_blocks
from tests.parity.families import MASK, SUPPORTED

ORIGINAL, NAMED = 32, 128


def roped(kind: str) -> LlamaForCausalLM:
    """A model whose rotary frequencies change strongly beyond a number of positions."""
    parameters = {"rope_type": kind, "rope_theta": 10000.0, "factor": 4.0}
    if kind == "longrope":
        parameters |= {"short_factor": [1.0] * 6, "long_factor": [8.0] * 6}
        parameters["original_max_position_embeddings"] = ORIGINAL
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=96, hidden_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=64, max_position_embeddings=NAMED, initializer_range=0.3, rope_parameters=parameters,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def texts(decoder: Decoder, prompts: list[list[int]], policy, new: int) -> list[list[int]]:
    found: list[list[int]] = [[] for _ in prompts]
    for chunk in decoder.decode(prompts, policy=policy, max_new_tokens=new):
        found[chunk.row] += chunk.token_ids
    return found


def test_longrope_ends_where_its_frequencies_change() -> None:
    """A long row in the same batch, or masks beyond the threshold, gave every token of the pass other frequencies, and
    silently another text. Up to the threshold, every row must write what it writes alone."""
    model = roped("longrope")
    assert position_limit(model) == ORIGINAL
    check_blocks(model, MASK)
    decoder = Decoder(model, mask_id=MASK, trained_k=6)
    prompts = [[7, 8, 9], [*range(10, 30)]]
    alone = [texts(Decoder(model), [prompt], NextToken(), 12)[0] for prompt in prompts]
    assert texts(decoder, prompts, Exact(0.0), 12) == alone, "masks stop at the last position"
    with pytest.raises(
        DecodingError, match=r"the model's 32 positions \(longrope changes .* ask for at most 12 tokens"
    ):
        decoder.decode(prompts, max_new_tokens=13)


def test_the_self_test_sees_frequencies_that_follow_the_pass(monkeypatch) -> None:
    """48 positions could not show it, so the self-test adds a token at the last position that may be fed."""
    model = roped("longrope")
    monkeypatch.setattr(selftest, "position_limit", lambda model: NAMED)
    with pytest.raises(UnsupportedModelError, match="logits for tokens in front of a far one differ"):
        check_blocks(model, MASK, positions=28)  # all but the far one lie within the original 32


def test_dynamic_rope_changes_nothing_within_its_positions() -> None:
    """Its frequencies grow only beyond max_position_embeddings, where nothing is fed. A row in a batch with one that
    ends at the last position must write what it writes alone."""
    model = roped("dynamic")
    assert position_limit(model) == NAMED
    check_blocks(model, MASK)
    prompts = [[7, 8, 9], [*range(6, 90), *range(6, 38)]]
    alone = [texts(Decoder(model), [prompt], NextToken(), 12)[0] for prompt in prompts]
    assert len(prompts[1]) + 12 == NAMED
    assert texts(Decoder(model, mask_id=MASK, trained_k=6), prompts, Exact(0.0), 12) == alone


def test_a_kind_of_layers_of_its_own() -> None:
    """Each kind of layer has its own rotary parameters, as in Gemma 3."""
    model = SUPPORTED["gemma3, sliding and full"]()
    kinds = model.config.rope_parameters
    kinds["full_attention"] |= {"rope_type": "longrope", "original_max_position_embeddings": 40}
    assert position_limit(model) == 40


def in_type(dtype: torch.dtype, offset: float = 0.0) -> LlamaForCausalLM:
    """A model with large logits that differ little. Large models have logits of 16 to 32, where a step of bf16 is
    0.125."""
    model = SUPPORTED["llama"]()
    with torch.no_grad():
        model.lm_head.weight *= 0.04
        model.model.norm.weight[0] = 0.0
        model.model.norm.bias = torch.nn.Parameter(torch.zeros(48))
    model.model.norm.register_forward_hook(
        lambda _, __, y: torch.cat([torch.full_like(y[..., :1], 1.0), y[..., 1:]], -1)
    )
    with torch.no_grad():
        model.lm_head.weight[:, 0] = offset
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rounding_is_no_fault(dtype) -> None:
    """One step of the type at a large logit is more than a tenth of a small spread, and such models were refused for
    nothing."""
    model = in_type(dtype, 24.0)
    ids = torch.arange(6, 46)[None]
    with torch.no_grad():
        logits = model(ids).logits.float()
    assert logits.min() > 16 and logits.max() < 32 and logits.std() < 1
    check_blocks(model, MASK)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_wrong_mask_is_a_fault_in_every_type(dtype, monkeypatch) -> None:
    """One visible position too many, out of about forty, causes errors far larger than rounding."""
    look_up = AttentionRule.look_up
    monkeypatch.setattr(AttentionRule, "look_up", lambda rule, q, kv, allowed=None: look_up(rule, q + 1, kv, allowed))
    with pytest.raises(UnsupportedModelError, match="would decode wrongly"):
        check_blocks(in_type(dtype), MASK)
