"""Attention with grouped heads must equal transformers' own, which repeats every key for each head of a group."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from transformers.integrations import sdpa_attention
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from multitoken.decoding.attention import AttentionRule
from multitoken.decoding.grouped import NAME, grouped_attention
from multitoken.decoding.loop import Decoder
from multitoken.decoding.policies import StaticK


class Layer(torch.nn.Module):
    def __init__(self, groups: int) -> None:
        super().__init__()
        self.num_key_value_groups = groups


def inputs(rows: int = 2, heads: int = 6, kept: int = 2, queries: int = 5, keys: int = 11, size: int = 8):
    generator = torch.Generator().manual_seed(0)
    shapes = [(rows, heads, queries, size), (rows, kept, keys, size), (rows, kept, keys, size)]
    query, key, value = (torch.randn(s, generator=generator, dtype=torch.float64, requires_grad=True) for s in shapes)
    mask = torch.rand(rows, 1, queries, keys, generator=generator) < 0.6
    mask[..., 0] = True  # every query sees at least one key
    return query, key, value, mask


@pytest.mark.parametrize("additive", [False, True])
def test_values_and_gradients_equal_those_of_repeated_keys(additive: bool) -> None:
    """Guards against mixing up the queries of two heads, and against a mask repeated in the wrong order."""
    query, key, value, mask = inputs()
    if additive:
        mask = torch.zeros(mask.shape, dtype=torch.float64).masked_fill(~mask, -1e9)
    found = []
    for attend in (grouped_attention, sdpa_attention_forward):
        output, _ = attend(Layer(3), query, key, value, mask, scaling=0.3)
        gradients = torch.autograd.grad(
            (output * torch.arange(output.numel()).view_as(output)).sum(), (query, key, value)
        )
        found.append([output, *gradients])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-9)


def llama(groups: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4 // groups, attn_implementation="sdpa",
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def test_no_key_is_copied_by_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """At 8,192 cached tokens, the copies take several times as long as the products that need them."""
    model = llama(2)
    copied = []

    def note(states: torch.Tensor, times: int) -> torch.Tensor:
        copied.append(states.shape)
        return states.repeat_interleave(times, 1)

    monkeypatch.setattr(sdpa_attention, "repeat_kv", note)
    decoder = Decoder(model, mask_id=63, trained_k=4)
    prompts = [[1, 2, 3, 4, 5], [6, 7]]
    for _ in decoder.decode(prompts, policy=StaticK(4), max_new_tokens=8):
        pass
    assert not copied
    model(torch.tensor([[1, 2, 3]]), attention_mask=torch.tensor([[0, 1, 1]]))
    assert not copied  # nor by a pass of the user's own


def test_only_models_with_grouped_heads_are_changed() -> None:
    """An attention name that a family does not know would change the masks that it builds."""
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=32, n_embd=16, n_layer=1, n_head=2, attn_implementation="sdpa"))
    eager = llama(2)
    eager.set_attn_implementation("eager")
    for model, name in ((llama(2), NAME), (llama(1), "sdpa"), (gpt2, "sdpa"), (eager, "eager")):
        AttentionRule(model)
        assert model.config._attn_implementation == name


def test_a_saved_config_says_nothing_of_it(tmp_path) -> None:
    """Another program would not know the name of our attention."""
    model = llama(2)
    AttentionRule(model)
    model.save_pretrained(tmp_path)
    assert NAME not in (tmp_path / "config.json").read_text()
    again = LlamaForCausalLM.from_pretrained(tmp_path)
    assert again.config._attn_implementation == "sdpa"
