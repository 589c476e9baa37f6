"""Training rows for benchmarks: word problems with the generator's responses."""

import json
from itertools import islice
from pathlib import Path

from multitoken.checkpoints.atomic import write_text
from multitoken.quickstart.corpus import examples


def write_rows(path: Path, number: int, split: str = "adapt") -> None:
    """Write a JSONL file of `number` rows, each with a prompt and its response."""
    rows = islice(examples("word-problems", split, number), number)
    write_text(path, "".join(json.dumps({"prompt": row.prompt, "response": row.response}) + "\n" for row in rows))
