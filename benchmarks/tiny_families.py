"""A tiny random model of every family that transformers knows. Its logits vary so much that a wrong mask or state shows.

Each is made from its family's own default config with reduced sizes; `_OWN` has what a family needs beyond that. Windows and
chunks are 6 positions and kernels of recurrences are short, so that a test of forty tokens crosses every border. Nothing is
downloaded. Each model takes a second.
"""

import copy
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

VOCABULARY, MASK, EOS = 96, 95, 5
_TYPES = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
# Sizes, under all the names that configs use.
_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48, "d_model": 48, "n_embd": 48, "dim": 48,
    "num_hidden_layers": 4, "n_layer": 4, "n_layers": 4, "num_layers": 4,
    "num_attention_heads": 4, "n_head": 4, "n_heads": 4, "num_heads": 4, "num_key_value_heads": 2,
    "head_dim": 12,
    "intermediate_size": 64, "ffn_dim": 64, "ffn_hidden_size": 64, "n_inner": 64,
    "max_position_embeddings": 128, "n_positions": 128, "max_seq_len": 128,
    "moe_intermediate_size": 32, "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "sliding_window": 6, "initializer_range": 0.3,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": EOS,
    "attention_dropout": 0.0, "hidden_dropout": 0.0, "rope_scaling": None,
}  # fmt: skip
_MLA = {"q_lora_rank": 24, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 12, "v_head_dim": 12,
        "num_key_value_heads": 4, "head_dim": 8, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
        "n_shared_experts": 1}  # fmt: skip
_SSD = {"state_size": 8, "num_heads": 6, "head_dim": 16, "n_groups": 1, "chunk_size": 8, "expand": 2}
_MAMBA_IN = {"mamba_d_state": 8, "mamba_n_heads": 6, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_chunk_size": 8,
             "mamba_expand": 2, "mamba_d_ssm": 96}  # fmt: skip
_DELTA = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
          "layer_types": ["linear_attention", "full_attention"] * 2, "shared_expert_intermediate_size": 32,
          "decoder_sparse_step": 1, "mlp_only_layers": []}  # fmt: skip
_ALTERNATE = {"layer_types": _TYPES}

# What a family needs beyond its sizes. None: a field that it must not be given.
_OWN: dict[str, dict[str, Any]] = {
    "apertus": {}, "arcee": {}, "bitnet": {}, "biogpt": {}, "codegen": {"rotary_dim": 8}, "cohere": {"logit_scale": 1.0}, "olmo": {},
    "cohere2": _ALTERNATE | {"logit_scale": 1.0}, "deepseek_v2": _MLA | {"topk_method": "greedy"}, "deepseek_v3": _MLA, "diffllama": {},
    "doge": {}, "dots1": {"n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "n_shared_experts": 1, "layer_types": _TYPES},
    "ernie4_5": {}, "ernie4_5_moe": {"moe_num_experts": 4, "moe_k": 2}, "exaone4": _ALTERNATE,
    "falcon": {"new_decoder_architecture": False, "alibi": False, "multi_query": True, "num_kv_heads": 1},
    "flex_olmo": {}, "gemma": {}, "gemma2": _ALTERNATE, "gemma3_text": _ALTERNATE, "glm": {"partial_rotary_factor": 0.5},
    "glm4": {}, "glm4_moe": _MLA | {"head_dim": 12, "num_key_value_heads": 2, "first_k_dense_replace": 1},
    "gpt2": {}, "gpt_bigcode": {}, "gpt_neox": {"rotary_pct": 1.0}, "gpt_oss": _ALTERNATE, "gptj": {"rotary_dim": 8},
    "granite": {}, "granitemoe": {}, "granitemoeshared": {"shared_intermediate_size": 32}, "helium": {},
    "hunyuan_v1_dense": {}, "hunyuan_v1_moe": {"moe_topk": 2}, "jetmoe": {"kv_channels": 12}, "llama": {},
    "minimax_m2": {}, "ministral": _ALTERNATE, "mistral": {}, "mixtral": {}, "nanochat": {}, "nemotron": {},
    "olmo2": {}, "olmo3": _ALTERNATE, "olmoe": {}, "opt": {"word_embed_proj_dim": 48}, "persimmon": {}, "phi": {}, "phi3": {},
    "qwen2": {}, "qwen2_moe": {"shared_expert_intermediate_size": 32}, "qwen3": {}, "qwen3_moe": {}, "seed_oss": {},
    "smollm3": {}, "starcoder2": {}, "vaultgemma": _ALTERNATE, "xglm": {"attention_heads": 4}, "youtu": _MLA,
    "gemma4_text": _ALTERNATE | {"vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 8,
                                 "num_kv_shared_layers": 0, "global_head_dim": 24},
    "llama4_text": {"intermediate_size_mlp": 64, "attention_chunk_size": 6,
                    "layer_types": ["chunked_attention", "full_attention"] * 2},
    "phimoe": {}, "stablelm": {"partial_rotary_factor": 0.5}, "longcat_flash": _MLA | {"num_layers": 2, "ffn_hidden_size": 64, "expert_ffn_hidden_size": 32,
                                                          "zero_expert_num": 2, "moe_topk": 2},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "window_size": 6},
    "bloom": {}, "mpt": {}, "falcon, ALiBi": {"alibi": True, "new_decoder_architecture": False, "multi_query": True},
    "mamba": {"state_size": 8}, "falcon_mamba": {"state_size": 8},
    "jamba": {"mamba_d_state": 8, "mamba_dt_rank": 4, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2,
              "expert_layer_offset": 1, "sliding_window": None},
    "mamba2": _SSD, "falcon_h1": _MAMBA_IN, "bamba": _MAMBA_IN | {"attn_layer_indices": [1, 3]},
    "granitemoehybrid": _MAMBA_IN | {"layer_types": ["mamba", "attention"] * 2, "shared_intermediate_size": 32},
    "nemotron_h": {"mamba_num_heads": 6, "mamba_head_dim": 16, "n_groups": 1, "ssm_state_size": 8, "chunk_size": 8,
                   "layers_block_type": ["mamba", "attention", "mamba", "moe"], "n_group": 1, "topk_group": 1,
                   "moe_shared_expert_intermediate_size": 32},
    "zamba": {"attention_hidden_size": 96, "attention_head_dim": 24, "num_key_value_heads": 4, "mamba_d_state": 8,
              "mamba_dt_rank": 4, "n_mamba_heads": 2, "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"], "head_dim": None},
    "zamba2": {"mamba_d_state": 8, "n_mamba_heads": 6, "mamba_headdim": 16, "mamba_ngroups": 1, "chunk_size": 8,
               "num_key_value_heads": 4, "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"], "num_mem_blocks": 1,
               "use_shared_attention_adapter": False, "adapter_rank": 4, "head_dim": None},
    "qwen3_next": _DELTA, "qwen3_5_text": _DELTA, "qwen3_5_moe_text": _DELTA,
    "olmo_hybrid": _DELTA | {"linear_num_value_heads": 2},
    "kimi_linear": _MLA | _DELTA | {"linear_num_heads": 4, "linear_head_dim": 8},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2, "block_multiple_of": 8},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2, "num_dense_layers": 1},
    "minimax": {"sliding_window": None, "layer_types": ["linear_attention", "full_attention"] * 2, "block_size": 8},
    "recurrent_gemma": {"lru_width": 48, "attention_window_size": 6, "block_types": ["recurrent", "attention"]},
    "rwkv": {"attention_hidden_size": 48},
}  # fmt: skip
FAMILIES = tuple(sorted(_OWN))


def tiny_config(family: str, **settings: Any) -> Any:
    """The config of a family's tiny model. `settings` override those of the family."""
    kind = family.split(",")[0]
    own = copy.deepcopy(_OWN[family]) | settings
    known = AutoConfig.for_model(kind).to_dict().keys() | set(type(AutoConfig.for_model(kind)).attribute_map)
    sizes = {name: value for name, value in _SIZES.items() if name in known and name not in own}
    return AutoConfig.for_model(kind, **sizes, **{name: value for name, value in own.items() if value is not None})


def tiny_model(family: str, **settings: Any) -> PreTrainedModel:
    """A random model of the family, in eval mode, the same at each call."""
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(tiny_config(family, **settings))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name and parameter.ndim >= 2 and float(parameter.std()) < 0.1:
                parameter.normal_(0, 0.3)  # these families have initialisation rules of their own
    if hasattr(model, "set_experts_implementation") and hasattr(model.config, "_experts_implementation"):
        model.set_experts_implementation("eager")  # the fused kernel does not support float64
    return model.eval()
