"""Masks computed from positions must equal transformers' masks, at lengths below and above a window, a chunk and a
growth."""

import inspect

import pytest
import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    Llama4ForCausalLM,
    Llama4TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)
from transformers.masking_utils import create_chunked_causal_mask, create_masks_for_generate

from multitoken.decoding.attention import AttentionRule, _recognise

SIZE = {
    "vocab_size": 16, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 1024,
}  # fmt: skip


def mistral(window: int | None, attention: str):
    return MistralForCausalLM(MistralConfig(**SIZE, sliding_window=window, attn_implementation=attention)).eval()


def gemma3(window: int, attention: str):
    types = ["sliding_attention", "full_attention"]
    config = Gemma3TextConfig(
        **SIZE, head_dim=4, sliding_window=window, layer_types=types, attn_implementation=attention
    )
    return Gemma3ForCausalLM(config).eval()


def llama4(chunk: int, attention: str):
    config = Llama4TextConfig(
        **SIZE, intermediate_size_mlp=8, head_dim=4, num_local_experts=2, attention_chunk_size=chunk,
        layer_types=["chunked_attention", "full_attention"], attn_implementation=attention,
    )  # fmt: skip
    return Llama4ForCausalLM(config).eval()


def transformers_masks(model, length: int) -> dict[str, torch.Tensor]:
    """[length, length] bool by kind of layer, as transformers builds them for a plain row."""
    ids = torch.zeros(1, length, dtype=torch.long)
    masks = create_masks_for_generate(
        model.config, model.get_input_embeddings()(ids), torch.ones_like(ids), None, position_ids=torch.arange(length)[None]
    )  # fmt: skip
    named = masks if isinstance(masks, dict) else {"": masks}
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    return {name: causal if mask is None else as_bool(mask) for name, mask in named.items()}


def as_bool(mask: torch.Tensor) -> torch.Tensor:
    return mask[0, 0] if mask.dtype == torch.bool else mask[0, 0] == 0


def by_rule(rule: AttentionRule, length: int) -> dict[str, torch.Tensor]:
    masks = rule.slots(torch.arange(length)[None], length)
    named = masks if isinstance(masks, dict) else {"": masks}
    return {name: as_bool(mask) for name, mask in named.items()}


MODELS = {
    "causal": lambda how: LlamaForCausalLM(LlamaConfig(**SIZE, attn_implementation=how)).eval(),
    "window 6": lambda how: mistral(6, how),
    "window 200": lambda how: mistral(200, how),
    "no window": lambda how: mistral(None, how),
    "window 6 and full": lambda how: gemma3(6, how),
    "window 200 and full": lambda how: gemma3(200, how),
}
CHUNKED = {"chunk 6 and full": lambda how: llama4(6, how), "chunk 200 and full": lambda how: llama4(200, how)}
if "block_sequence_ids" in inspect.signature(create_chunked_causal_mask).parameters:
    MODELS |= CHUNKED  # transformers 5.19 cannot build the masks of its own chunked models


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("how", ["sdpa", "eager"])
def test_masks_by_position_equal_transformers_masks_at_every_length(name: str, how: str) -> None:
    """A window longer than the first growth looks plainly causal, and sdpa gets no mask at all. If that were taken for
    the rule, every token beyond the window would see too much."""
    model = MODELS[name](how)
    rule = AttentionRule(model)
    for length in (4, 128, 199, 200, 201, 300, 520):
        rule.grow(length)
        found, wanted = by_rule(rule, length), transformers_masks(model, length)
        assert found.keys() == wanted.keys()
        for kind, mask in wanted.items():
            assert torch.equal(found[kind], mask), (kind, length)


@pytest.mark.parametrize("name", [name for name in MODELS if "window" in name or "chunk" in name])
def test_a_query_far_behind_sees_what_its_row_of_the_mask_says(name: str) -> None:
    """Decoding asks for single positions beyond the row from which the rule was read. The formulas must be right
    there."""
    model = MODELS[name]("sdpa")
    rule = AttentionRule(model)
    rule.grow(300)
    wanted = transformers_masks(model, 700)
    rule.grow(700)
    masks = rule.slots(torch.tensor([[3, 299], [650, 699]]), 700)
    named = masks if isinstance(masks, dict) else {"": masks}
    for kind, mask in named.items():
        assert torch.equal(mask[:, 0], wanted[kind][torch.tensor([[3, 299], [650, 699]])]), kind


@pytest.mark.parametrize("name", [name for name in MODELS if "window" in name or "chunk" in name])
def test_no_table_as_long_as_the_text_is_drawn(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """For 131,072 positions, such a table would have 17 billion entries."""
    model, asked = MODELS[name]("sdpa"), []

    def note(config, embeds, *more, **named):
        asked.append(embeds.shape[1])
        return create_masks_for_generate(config, embeds, *more, **named)

    monkeypatch.setattr("multitoken.decoding.attention.create_masks_for_generate", note)
    AttentionRule(model).grow(20_000)
    assert (asked and max(asked) <= 200 + 128) or name == "no window"


def drawn(length: int, sees) -> torch.Tensor:
    at = torch.arange(length)
    return sees(at[:, None], at[None])


@pytest.mark.parametrize("size", [1, 2, 6, 7, 127])
def test_windows_and_chunks_are_recognised_and_drawn_further(size: int) -> None:
    """A table in place of a formula would end where the row that was asked for ends. The wrong formula would give wrong
    masks."""
    window = lambda q, kv: (kv <= q) & (kv > q - size)  # noqa: E731
    chunk = lambda q, kv: (kv <= q) & (kv // size == q // size)  # noqa: E731
    for sees in (window, chunk):
        kind = _recognise(drawn(128, sees))
        assert kind.known is None and kind.table is None
        assert torch.equal(drawn(400, kind.sees), drawn(400, sees))


def test_what_looks_causal_is_known_for_the_row_asked_for_only() -> None:
    """A window or chunk of 128 or more looks the same as plain causality in a row of 128."""
    for sees in (lambda q, kv: kv <= q, lambda q, kv: (kv <= q) & (kv > q - 128)):
        kind = _recognise(drawn(128, sees))
        assert (kind.known, kind.window, kind.chunk, kind.table) == (128, None, None, None)


def test_a_rule_that_is_neither_stays_a_table() -> None:
    """If a pattern such as "every other token" were forced into a formula, its masks would be wrong."""
    odd = drawn(64, lambda q, kv: (kv <= q) & ((q - kv) % 2 == 0))
    kind = _recognise(odd)
    assert kind.known == 64 and torch.equal(drawn(64, kind.sees), odd)
