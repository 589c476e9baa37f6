"""Does `adapt --dry-run` predict what the run takes? `python -m benchmarks.dry_runs` (about 12 minutes on one core).

Three shapes of random weights and three methods. For each, a dry run predicts the peak memory and the time of the given number of steps.
Then the run is made. Memory and time of both are measured in the same way: the growth of the process's resident size, and the clock of the
training. Every run has a process of its own. The last line is JSON.
"""

import argparse
import json
import multiprocessing
import tempfile
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from benchmarks.training_rows import write_rows
from multitoken.checkpoints.provenance import provenance
from multitoken.config import make_config
from multitoken.quickstart.embedded import checkpoint
from multitoken.training.adapt import adapt
from multitoken.training.memory import peak_memory
from multitoken.training.plan import plan

SHAPES: dict[str, dict[str, Any]] = {
    "5 M": {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 6},
    "22 M": {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 7},
    "85 M": {"hidden_size": 1024, "intermediate_size": 2752, "num_hidden_layers": 7},
}
METHODS = ("gated", "lora", "full")


def make(shape: dict[str, Any], folder: Path) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        **shape, vocab_size=2048, num_attention_heads=8, num_key_value_heads=4, max_position_embeddings=1024
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(checkpoint("base")).save_pretrained(folder)


def options_of(folder: Path, method: str, steps: int, *, grows: bool) -> dict[str, Any]:
    return ({} if grows else {"k_growth": 0.0}) | {
        "model": folder / "base",
        "data": folder / "data.jsonl",
        "output": folder / f"adapted-{method}",
        "method": method,
        "steps": steps,
        "batch_size": 4,
        "report_to": "none",
    }


def predicted(folder: Path, method: str, steps: int, grows: bool) -> dict[str, float]:
    found = plan(make_config(**options_of(folder, method, steps, grows=grows)), Console(quiet=True))
    return {"peak": found.memory["peak, measured"], "seconds": found.seconds}


def taken(folder: Path, method: str, steps: int, grows: bool) -> dict[str, float]:
    with peak_memory(torch.device("cpu")) as peak:
        adapted = adapt(**options_of(folder, method, steps, grows=grows), verbose=False)
    return {"peak": peak.bytes, "seconds": adapted.seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument(
        "--longest",
        action="store_true",
        help="full-length blocks from the first step, as at the end of a long run; for runs of few steps",
    )
    a = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    results = []
    print("| parameters | method | memory, predicted | measured | error | time, predicted | measured | error |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as work:
        for name, shape in ((name, SHAPES[name]) for name in a.shapes):
            folder = Path(work) / name.replace(" ", "-")
            make(shape, folder / "base")
            write_rows(folder / "data.jsonl", 400)
            for method in a.methods:
                both = []
                for ask in (predicted, taken):
                    with context.Pool(1) as pool:
                        both.append(pool.apply(ask, (folder, method, a.steps, not a.longest)))
                before, after = both
                off = {what: before[what] / after[what] - 1 for what in ("peak", "seconds")}
                results.append({"model": name, "method": method, "predicted": before, "taken": after})
                print(
                    f"| {name} | {method} | {before['peak'] / 1e6:,.0f} MB | {after['peak'] / 1e6:,.0f} MB | {off['peak']:+.0%} "
                    f"| {before['seconds']:.0f} s | {after['seconds']:.0f} s | {off['seconds']:+.0%} |",
                    flush=True,
                )
    print(json.dumps({"provenance": provenance(threads=torch.get_num_threads()), "results": results}))


if __name__ == "__main__":
    main()
