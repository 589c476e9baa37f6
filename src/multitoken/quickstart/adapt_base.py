"""Make the embedded adapted checkpoints: `python -m multitoken.quickstart.adapt_base --method gated --output DIR`.

The data is prompts only, as a user would give them: the base model writes the responses itself. The weights are rounded
to bf16.
"""

import argparse
import itertools
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from multitoken.checkpoints.adapter import save_adapter
from multitoken.checkpoints.atomic import write_text
from multitoken.checkpoints.save import save_checkpoint
from multitoken.models.loading import load_causal_lm
from multitoken.models.placement import cpu_gains_by_bf16
from multitoken.training.adapt import adapt

from .corpus import mixed
from .embedded import checkpoint

# Counting and repeating have the most to learn: three-digit numbers, steps of a hundred, words that do not exist.
MIXTURE = {"word-problems": 0.31, "letters": 0.09, "counting": 0.26, "repeating": 0.34}
_COMMON = {
    "k_max": 16,
    "k_growth": 0.0,
    "join_share": 0.0,
    "blocks_per_row": 32,
    "batch_size": 8,
    "optimizer": "muon",
}
RECIPES: dict[str, dict[str, Any]] = {
    # Every second response is sampled, which teaches probabilities. The others are the base model's own greedy ones, so
    # their tokens are its labels.
    "gated": _COMMON
    | {
        "method": "gated",
        "rank": 192,
        "labels": "data",
        "loss_weights": "reach",
        "learning_rate": 5e-3,
        "blocks_per_row": 24,
        "temperature": 0.8,
        "join_share": 0.125,
    },
    "full": _COMMON
    | {
        "head_rank": 0,
        "responses": "greedy",
        "method": "full",
        "loss_until": "first-disagreement",
        "next_token_weight": 10.0,
        "free_directions": 1.0,
        "learning_rate": 2e-3,
    },
}


def recipe(method: str) -> dict[str, Any]:
    """The options of a method, with the dtype that trains faster on this machine."""
    return RECIPES[method] | {"dtype": "bfloat16" if cpu_gains_by_bf16() else "float32"}


def write_prompts(path: Path, number: int, mixture: dict[str, float] = MIXTURE) -> None:
    """Write prompts of the tasks. The base model was not trained on any of them and will not be tested on any."""
    prompts = (example.prompt for example in itertools.islice(mixed("adapt", mixture=mixture), number))
    write_text(path, "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))


def round_weights(trained: Path, output: Path, *, overwrite: bool) -> None:
    """Save the trained checkpoint again in bf16, because it is shipped with the package."""
    log = {"adapt.json": (trained / "adapt.json").read_text()}
    loaded = load_causal_lm(trained)
    assert loaded.mtp is not None
    files: dict[str, Any] = {
        "overwrite": overwrite,
        "extra_files": log,
        "dtype": torch.bfloat16,
        "head": loaded.head,
        "decoding": getattr(loaded.model.generation_config, "mtp", None),
    }
    if loaded.adapter is not None:
        save_adapter(loaded.adapter, loaded.tokenizer, loaded.mtp, output, base=str(checkpoint("base")), **files)
    else:
        save_checkpoint(loaded.model, loaded.tokenizer, loaded.mtp, output, **files)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--method", choices=sorted(RECIPES), default="gated")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=25.0)
    parser.add_argument("--prompts", type=int, default=4500)
    parser.add_argument("--task", choices=sorted(MIXTURE), help="adapt to this task only")
    parser.add_argument("--start-from", type=Path, help="start from this gated adapter")
    parser.add_argument("--overwrite", action="store_true")
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "prompts.jsonl"
        write_prompts(data, a.prompts, {a.task: 1.0} if a.task else MIXTURE)
        trained = Path(folder) / "adapted"
        options = recipe(a.method) | ({"start_from": a.start_from} if a.start_from else {})
        adapt(checkpoint("base"), data=data, output=trained, minutes=a.minutes, console=Console(), **options)
        round_weights(trained, a.output, overwrite=a.overwrite)


if __name__ == "__main__":
    main()
