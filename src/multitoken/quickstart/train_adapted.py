"""Make the embedded adapted checkpoint: `python -m multitoken.quickstart.train_adapted --output DIR --minutes M`.

From prompts alone, as a user would: the base model writes the responses itself. The weights are rounded to bf16.
"""

import argparse
import itertools
import json
import tempfile
from pathlib import Path

import torch
from rich.console import Console

from multitoken.checkpoints.atomic import write_text
from multitoken.checkpoints.save import save_checkpoint
from multitoken.models.loading import load_causal_lm
from multitoken.training.adapt import adapt

from .corpus import LANGUAGE, mixed
from .embedded import checkpoint

RECIPE = {
    "method": "full",
    "k_max": 16,
    "blocks_per_row": 32,
    "batch_size": 8,
    "loss_until": "first-disagreement",
    "next_token_weight": 10.0,
    "optimizer": "muon",
    "learning_rate": 2e-3,
    "dtype": "bfloat16",
}


def write_prompts(path: Path, number: int) -> None:
    """Prompts of all trained tasks, none of which the base model was trained or will be tested on."""
    prompts = (example.prompt for example in itertools.islice(mixed("adapt", mixture=LANGUAGE), number))
    write_text(path, "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=25.0)
    parser.add_argument("--prompts", type=int, default=4500)
    parser.add_argument("--overwrite", action="store_true")
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "prompts.jsonl"
        write_prompts(data, a.prompts)
        trained = Path(folder) / "adapted"
        adapt(checkpoint("base"), data=data, output=trained, minutes=a.minutes, console=Console(), **RECIPE)
        loaded = load_causal_lm(trained)
        assert loaded.mtp is not None
        log = {"adapt.json": (trained / "adapt.json").read_text()}
        save_checkpoint(
            loaded.model,
            loaded.tokenizer,
            loaded.mtp,
            a.output,
            overwrite=a.overwrite,
            dtype=torch.bfloat16,
            extra_files=log,
        )


if __name__ == "__main__":
    main()
