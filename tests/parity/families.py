"""One tiny random model per attention family. The logits are spread so widely that a wrong mask changes them by 1 or more."""

import copy
from collections.abc import Callable
from functools import partial

import torch
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from benchmarks.tiny_families import EOS, MASK, VOCABULARY, tiny_model

__all__ = ["EOS", "MASK", "REFUSED", "SUPPORTED", "VOCABULARY"]

_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": EOS,
    "pad_token_id": 0,
}
_GROUPED = {**_COMMON, "num_key_value_heads": 2, "intermediate_size": 64}
_TYPES = ["sliding_attention", "full_attention", "sliding_attention"]


def _make(cls, config) -> Callable[[], PreTrainedModel]:
    def build() -> PreTrainedModel:
        torch.manual_seed(0)
        model = cls(copy.deepcopy(config)).eval()  # a copy: a test may change the config
        if hasattr(config, "num_experts"):
            model.set_experts_implementation("eager")  # the fused kernel does not support float64
        return model

    return build


SUPPORTED = {
    "llama": _make(LlamaForCausalLM, LlamaConfig(**_GROUPED)),
    "qwen3": _make(Qwen3ForCausalLM, Qwen3Config(**_GROUPED, head_dim=12)),
    "gpt2": _make(
        GPT2LMHeadModel,
        GPT2Config(
            vocab_size=VOCABULARY, n_embd=48, n_layer=3, n_head=4, n_positions=128, initializer_range=0.3,
            bos_token_id=1, eos_token_id=EOS, pad_token_id=0, attn_pdrop=0.1, resid_pdrop=0.1, embd_pdrop=0.1,
        ),
    ),
    "mistral, sliding": _make(MistralForCausalLM, MistralConfig(**_GROUPED, sliding_window=6)),
    "gemma2, sliding and full, eager": _make(
        Gemma2ForCausalLM, Gemma2Config(**_GROUPED, head_dim=12, sliding_window=6, layer_types=_TYPES, attn_implementation="eager")
    ),
    "gemma3, sliding and full": _make(
        Gemma3ForCausalLM, Gemma3TextConfig(**_GROUPED, head_dim=12, sliding_window=6, layer_types=_TYPES)
    ),
    "qwen3 mixture of experts": _make(
        Qwen3MoeForCausalLM,
        Qwen3MoeConfig(**_GROUPED, head_dim=12, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32),
    ),
}  # fmt: skip
EMBEDDING_SCALED = {  # besides Gemma 2 and 3 above: families that scale their embeddings or logits
    "gemma": _make(GemmaForCausalLM, GemmaConfig(**_GROUPED, head_dim=12)),
    "granite": _make(GraniteForCausalLM, GraniteConfig(**_GROUPED, embedding_multiplier=12.0, logits_scaling=4.0)),
    "cohere": _make(CohereForCausalLM, CohereConfig(**_GROUPED, logit_scale=0.25)),
}
REFUSED = {f"{family} ({why})": partial(tiny_model, family) for family, why in (("rwkv", "RWKV"),)}
