"""Train a small hybrid or a small mixture of experts: `python -m benchmarks.small_architectures --family hybrid --output DIR`.

Architectures that hold what the embedded model lacks, on the same corpus: recurrent layers whose state masks must not touch, and
experts that every position chooses anew. About 25 minutes on one core each; `--minutes` bounds the training by the clock, so the
weights differ from machine to machine. What they reach stands in docs/architectures.md:

    python -m benchmarks.small_architectures --family hybrid --output runs/hybrid
    python -m benchmarks.defaults --base runs/hybrid --task word-problems --method gated --minutes 10 --keep runs/hybrid-gated
    python -m benchmarks.word_problems --original runs/hybrid --model runs/hybrid-gated --prompts 500 --pairs 40
"""

import argparse
from pathlib import Path
from typing import Any

from transformers import (
    GraniteMoeHybridConfig,
    GraniteMoeHybridForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from multitoken.quickstart.train_base import common_config, silence_branches, train

VOCABULARY = 1024
TOKENIZER_SIZE = 1016  # eight rows stay unused: room for a mask token


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
    """In the shape of Qwen3's mixtures: 8 experts, of which every position asks two; 5.4 M parameters, 2.1 M at work."""
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=sorted(FAMILIES), required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=25.0)
    parser.add_argument("--tokens-per-batch", type=int, default=1536)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=1)
    a = parser.parse_args()
    if a.minutes <= 0:
        parser.error(f"--minutes is {a.minutes}; expected a number above 0")

    def build(tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
        model = FAMILIES[a.family](**common_config(tokenizer))
        silence_branches(model)
        return model

    train(
        a.output,
        build,
        steps=None,
        minutes=a.minutes,
        tokens_per_batch=a.tokens_per_batch,
        lr=a.lr,
        seed=a.seed,
        checkpoint_every=1000,
        tokenizer_size=TOKENIZER_SIZE,
        sums_from=None,
        autocast=a.family == "hybrid",  # faster there even on one core
    )


if __name__ == "__main__":
    main()
