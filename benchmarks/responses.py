"""Writing responses for training, by a server that runs the original model and by this process: tokens a second of each.

    python -m benchmarks.responses --server http://127.0.0.1:8000/v1

The server must serve the embedded base, for example `vllm serve src/multitoken/quickstart/checkpoints/base --dtype float32`. Both write
responses to the same prompts greedily, in interleaved rounds of `--prompts` prompts. The server has 256 requests in flight; this process writes
64 at a time. The last line is JSON.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console

from multitoken.checkpoints.provenance import provenance
from multitoken.config import make_config
from multitoken.models.model import Model
from multitoken.quickstart.embedded import checkpoint, embedded_task
from multitoken.training.teacher import response_writer


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--server", required=True)
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    a = parser.parse_args()
    original = Model.load(checkpoint("base"), device="cpu")
    questions = embedded_task("word-problems", a.prompts * a.rounds).questions
    rates: dict[str, list[float]] = {"server": [], "here": []}
    same = 0
    for number in range(a.rounds):
        prompts = [original.encode(q.prompt) for q in questions[number * a.prompts : (number + 1) * a.prompts]]
        said = []
        for way, url in (("server", a.server), ("here", None))[:: 1 if number % 2 else -1]:
            with tempfile.TemporaryDirectory() as folder:
                options: dict[str, Any] = {"model": "base", "data": "x.jsonl", "output": folder, "responses": "greedy"}
                config = make_config(**options, responses_from=url, max_new_tokens=320)
                writer = response_writer(
                    original.hf,
                    original.tokenizer,
                    2047,
                    sorted(original.decoder.eos_ids),
                    config,
                    Path(folder),
                    "hash",
                    Console(quiet=True),
                )
                started = time.perf_counter()
                said.append(writer(prompts))
                rates[way].append(sum(len(ids) for ids, _ in said[-1]) / (time.perf_counter() - started))
        same += sum(x == y for x, y in zip(*said, strict=True))
    found = {way: round(median(each)) for way, each in rates.items()}
    print(f"tokens a second: {found}; {same} of {a.prompts * a.rounds} responses are the same")
    print(json.dumps({"tokens_per_second": rates, "same": same, "provenance": provenance()}))


if __name__ == "__main__":
    main()
