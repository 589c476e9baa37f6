"""Train a small hybrid or a small mixture of experts: `python -m benchmarks.small_architectures --family hybrid --output DIR`.

These architectures have what the embedded model lacks, and are trained on the same corpus: recurrent layers, whose state must not be
changed by masks, and experts, which are chosen anew at every position. About 25 minutes on one core each. `--minutes` limits the training
time, so the weights differ from machine to machine. docs/architectures.md has the results and the commands.
"""

from typing import Any

from transformers import (
    GraniteMoeHybridConfig,
    GraniteMoeHybridForCausalLM,
    PreTrainedModel,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from benchmarks.small_base import VOCABULARY, options_of, train_small
from multitoken.quickstart.train_base import common_config


def hybrid(**common: Any) -> PreTrainedModel:
    """In the shape of Granite 4 (dense): two Mamba-2 layers to one of attention; 4.9 M parameters."""
    config = GraniteMoeHybridConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        shared_intermediate_size=512,
        num_local_experts=0,
        num_experts_per_tok=0,
        num_hidden_layers=6,
        layer_types=["mamba", "mamba", "attention"] * 2,
        num_attention_heads=4,
        num_key_value_heads=2,
        attention_multiplier=0.125,
        position_embedding_type="rope",
        mamba_n_heads=8,
        mamba_d_head=64,
        mamba_d_state=32,
        mamba_n_groups=1,
        mamba_chunk_size=32,
        **common,
    )
    return GraniteMoeHybridForCausalLM(config)


def mixture(**common: Any) -> PreTrainedModel:
    """In the shape of Qwen3's mixtures: 8 experts, two of them active at each position; 5.4 M parameters, 2.1 M active."""
    config = Qwen3MoeConfig(
        vocab_size=VOCABULARY,
        hidden_size=192,
        moe_intermediate_size=160,
        num_experts=8,
        num_experts_per_tok=2,
        norm_topk_prob=True,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=2,
        **common,
    )
    return Qwen3MoeForCausalLM(config)


FAMILIES = {"hybrid": hybrid, "mixture": mixture}


def main() -> None:
    parser = options_of(__doc__, minutes=25.0, tokens_per_batch=1536)
    parser.add_argument("--family", choices=sorted(FAMILIES), required=True)
    a = parser.parse_args()
    build = FAMILIES[a.family]
    # If the CPU has instructions for bf16, it is faster for the hybrid even on one core.
    autocast = None if a.family == "hybrid" else False
    train_small(parser, a, lambda tokenizer: build(**common_config(tokenizer)), autocast=autocast)


if __name__ == "__main__":
    main()
