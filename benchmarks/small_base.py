"""What the benchmarks' own small bases share: the vocabulary, the options of the command, and training for a fixed time."""

import argparse
from collections.abc import Callable
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from multitoken.quickstart.train_base import silence_branches, train

VOCABULARY = 1024
TOKENIZER_SIZE = 1016  # eight rows stay unused, because vLLM requires the mask token's id to be inside the vocabulary


def options_of(doc: str | None, *, minutes: float, tokens_per_batch: int) -> argparse.ArgumentParser:
    """A parser with the shared options of these commands and with the defaults of this one."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=minutes)
    parser.add_argument("--tokens-per-batch", type=int, default=tokens_per_batch)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=1)
    return parser


def train_small(
    parser: argparse.ArgumentParser,
    a: argparse.Namespace,
    build: Callable[[PreTrainedTokenizerFast], PreTrainedModel],
    *,
    autocast: bool | None = False,
) -> None:
    """Train the model that `build` makes for `a.minutes`, without practice in arithmetic."""
    if a.minutes <= 0:
        parser.error(f"--minutes is {a.minutes}; expected a number above 0")

    def calm(tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
        model = build(tokenizer)
        silence_branches(model)
        return model

    train(
        a.output,
        calm,
        steps=None,
        minutes=a.minutes,
        tokens_per_batch=a.tokens_per_batch,
        lr=a.lr,
        seed=a.seed,
        checkpoint_every=1000,
        tokenizer_size=TOKENIZER_SIZE,
        sums_from=None,
        autocast=autocast,
    )
