"""Train the held-out base: `python -m benchmarks.held_out_base --output ../runs/held-out` (14 minutes on one core).

Numbers are judged on this model and nothing is tuned on it: no default, recipe or threshold of the project was chosen by
looking at it. It differs from the embedded base in what the code could have come to depend on: the architecture (Qwen3,
with norms on queries and keys), the head size, the vocabulary and its tokenizer, the depth of training. It reads the
same corpus and writes the same language; its sums are often wrong, which no speed depends on.

`--minutes` bounds the training by the clock, so the weights differ from machine to machine.
"""

import argparse
from pathlib import Path

from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from multitoken.quickstart.train_base import common_config, silence_branches, train

VOCABULARY = 1024
TOKENIZER_SIZE = 1016  # vLLM wants the mask token's id inside of the vocabulary: eight rows stay unused


def build_model(tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """A Qwen3 of 2.6 M parameters with random weights; grouped queries, and heads of 32, which vLLM's CPU attention has."""
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=32,
        **common_config(tokenizer),
    )
    model = Qwen3ForCausalLM(config)
    silence_branches(model)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=14.0)
    parser.add_argument("--tokens-per-batch", type=int, default=3072)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=1)
    a = parser.parse_args()
    if a.minutes <= 0:
        parser.error(f"--minutes is {a.minutes}; expected a number above 0")
    train(
        a.output,
        build_model,
        steps=None,
        minutes=a.minutes,
        tokens_per_batch=a.tokens_per_batch,
        lr=a.lr,
        seed=a.seed,
        checkpoint_every=1000,
        tokenizer_size=TOKENIZER_SIZE,
        sums_from=None,
        autocast=False,
    )


if __name__ == "__main__":
    main()
