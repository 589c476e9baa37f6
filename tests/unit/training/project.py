"""A folder with a tiny base model and data, and a short run of adapt with them."""

import json
from pathlib import Path

from multitoken.training.adapt import Adapted, adapt
from tests.tiny import tiny_llama, tiny_tokenizer

PAIRS = [
    {"prompt": f"w{4 + i} w{5 + i}", "response": " ".join(f"w{4 + (i + j) % 50}" for j in range(9))} for i in range(24)
]
PROMPTS = [{"prompt": pair["prompt"]} for pair in PAIRS]


def make_project(folder: Path, rows: list[dict] = PAIRS, *, vocab_size: int = 64) -> Path:
    """Write `base`, a model with `vocab_size` embedding rows for 60 tokens, and `data.jsonl`."""
    tokenizer = tiny_tokenizer()
    base = tiny_llama(tokenizer, vocab_size=vocab_size)
    base.get_output_embeddings().weight.data[60:] = 0  # as in a trained model, an unused row is never chosen
    base.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def run(project: Path, name: str, **options) -> Adapted:
    given = {"steps": 6, "batch_size": 4, "blocks_per_row": 3, "k_max": 4, "learning_rate": 1e-2, "checkpoint_every": 2}
    given |= {"report_to": "none", "method": "full", "labels": "online", "loss_weights": "even", "optimizer": "adamw"}
    return adapt(model=project / "base", data=project / "data.jsonl", output=project / name, **(given | options))
