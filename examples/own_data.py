"""Adapt a model to your own prompts, and decode with it: `python examples/own_data.py [MODEL] [MINUTES]`."""

import json
import sys
import tempfile
from pathlib import Path

import multitoken as mt
from multitoken.quickstart.embedded import checkpoint

model = sys.argv[1] if len(sys.argv) > 1 else checkpoint("base")
minutes = float(sys.argv[2]) if len(sys.argv) > 2 else 1.0

with tempfile.TemporaryDirectory() as folder:
    prompts = Path(folder) / "prompts.jsonl"  # prompts are enough: the model writes the responses
    rows = [{"prompt": f"Count from {i} to {i + 12}."} for i in range(1, 65)]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))

    adapted = mt.adapt(model, data=prompts, output=Path(folder) / "adapted", minutes=minutes, k_max=8, report_to="none")
    answer = mt.load(adapted.output, base=model).generate("Count from 70 to 80.")
    print(answer.text)
    print(f"{answer.tokens_per_step:.1f} tokens per step after {adapted.steps} steps of training")
