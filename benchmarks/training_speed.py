"""How fast a training step is and how much memory it takes: gated compared with full, and packed blocks with one block per row. Also
how much time denormals take on this CPU (`multitoken.training.denormals`).

    python -m benchmarks.training_speed                    the embedded base (a few minutes on 2 cores)
    python -m benchmarks.training_speed --model DIR --data prompts.jsonl
    python -m benchmarks.training_speed --part denormals

Steps of the compared kinds are interleaved in one process, on the same rows. A ratio is the median over the pairs, with its 95%
interval. Memory is measured for each method in a process of its own: the peak above the size of the base model's weights. The
last line is JSON.
"""

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from multitoken.checkpoints.provenance import provenance
from multitoken.config import AdaptConfig, make_config
from multitoken.evaluation.statistics import ratio_interval
from multitoken.quickstart.corpus import examples
from multitoken.quickstart.embedded import checkpoint
from multitoken.training.denormals import flushed_denormals
from multitoken.training.optimizer import build_optimizer
from multitoken.training.plan import plan
from multitoken.training.setup import Setup, make_ready, training_arguments
from multitoken.training.stream import BlockStream, collate

QUIET = Console(quiet=True)


class Stepper:
    """Optimizer steps of one setup, one at a time, without the Trainer around them: only the computation."""

    def __init__(self, config: AdaptConfig, folder: Path, *, keeps_denormals: bool = False) -> None:
        self.rounding = nullcontext if keeps_denormals else flushed_denormals
        self.setup: Setup = make_ready(config, folder, training_arguments(config, folder), QUIET)
        self.stream = BlockStream(self.setup.data.train, self.setup.stream, 10**6)
        trained = self.setup.distillation.trained
        self.optimizer = build_optimizer(trained, name=config.optimizer, lr=1e-5, weight_decay=0.0)
        self.bf16 = config.dtype == "bfloat16"

    def step(self, number: int) -> tuple[float, int]:
        """-> (seconds, supervised positions)"""
        with self.rounding():
            return self._step(number)

    def _step(self, number: int) -> tuple[float, int]:
        rows = self.setup.stream.rows_per_step
        inputs = collate([self.stream[number * rows + i] for i in range(rows)])
        started = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            loss, _ = self.setup.distillation(inputs)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.setup.distillation.trained.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return time.perf_counter() - started, rows * int(inputs["ks"].sum())


def compare(first: dict[str, Any], second: dict[str, Any], pairs: int, common: dict[str, Any]) -> dict[str, Any]:
    """Seconds per step of each, and the ratios first / second of steps and of supervised positions a second. If both are the same setup,
    the second one keeps its denormals."""
    with tempfile.TemporaryDirectory() as folder:
        steppers = [
            Stepper(make_config(**common | options), Path(folder), keeps_denormals=keeps)
            for options, keeps in ((first, False), (second, first == second))
        ]
        seconds: list[list[float]] = [[], []]
        places: list[list[float]] = [[], []]
        for number in range(pairs + 3):
            for i, stepper in enumerate(steppers):
                spent, supervised = stepper.step(number)
                if number >= 3:  # the first three warm up
                    seconds[i].append(spent)
                    places[i].append(spent / supervised)
    by_step = ratio_interval(list(zip(seconds[1], seconds[0], strict=True)))
    by_place = ratio_interval(list(zip(places[1], places[0], strict=True)))
    return {
        "seconds": [statistics.median(s) for s in seconds],
        "steps_ratio": by_step.median,
        "steps_interval": by_step.interval,
        "places_ratio": by_place.median,
        "places_interval": by_place.interval,
    }


def write_problems(path: Path, before: int = 0) -> Path:
    """Word problems with their answers, each with `before` solved ones before it in the prompt."""
    problems = examples("word-problems", "adapt", 400)
    with path.open("w") as file:
        for i in range(before, len(problems)):
            shots = "".join(f"{e.prompt} {e.response}\n" for e in problems[i - before : i])
            print(json.dumps({"prompt": shots + problems[i].prompt, "response": problems[i].response}), file=file)
    return path


def write_wide_model(folder: Path) -> Path:
    """Random weights whose width, like that of models in practical use, is many times the adapter's rank. It has only two layers, to
    save time."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint("base"))
    sizes = {"hidden_size": 1024, "intermediate_size": 3072, "num_attention_heads": 16, "num_key_value_heads": 8}
    ids = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(vocab_size=2048, num_hidden_layers=2, **sizes, **ids)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def extra_memory(options: dict[str, Any]) -> int:
    """Peak memory of a few steps in this process, above the base model's weights, in bytes."""
    found = plan(make_config(**options), QUIET)
    return found.memory["peak, measured"] - found.memory["weights"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(checkpoint("base")))
    parser.add_argument("--data", help="JSONL with responses; default: word problems of the embedded corpus")
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument(
        "--part", choices=("methods", "denormals"), action="append", help="measure only this part; repeatable"
    )
    a = parser.parse_args()
    parts = a.part or ["methods", "denormals"]
    with tempfile.TemporaryDirectory() as folder:
        data = a.data or write_problems(Path(folder) / "data.jsonl")
        common = {"model": a.model, "data": data, "output": Path(folder) / "out", "steps": 1, "dtype": a.dtype}
        common |= {
            "report_to": "none",
            "k_schedule": "fixed",
            "k_growth": 0.0,
            "join_share": 0.0,
            "next_token_weight": 0.0,
            "batch_size": 8,
            "blocks_per_row": 8,
            "labels": "online",
            "optimizer": "adamw",
        }
        long = {"data": a.data or write_problems(Path(folder) / "long.jsonl", before=3)}
        wide = {"model": write_wide_model(Path(folder) / "wide"), "batch_size": 4}
        results: dict[str, Any] = {}
        print(
            "| compared | seconds per step | ratio of steps per second (95%) | ratio of supervised positions per second (95%) |\n|---|---|---|---|"
        )
        denormals = {
            f"{m}, denormals flushed / kept": ({"method": m}, {"method": m}) for m in ("full", "lora", "gated")
        }
        methods = {
            "gated / full": ({"method": "gated"}, {"method": "full"}),
            "gated, rank 16 / full": ({"method": "gated", "rank": 16}, {"method": "full"}),
            "gated / full, four times as long": ({"method": "gated"} | long, {"method": "full"} | long),
            "gated / full, hidden 1,024": ({"method": "gated"} | wide, {"method": "full"} | wide),
            "gated / lora": ({"method": "gated"}, {"method": "lora"}),
            "full, 16 blocks a row / 1": (
                {"method": "full", "blocks_per_row": 16},
                {"method": "full", "blocks_per_row": 1},
            ),
            "gated, 16 blocks a row / 1": (
                {"method": "gated", "blocks_per_row": 16},
                {"method": "gated", "blocks_per_row": 1},
            ),
        }
        kinds = (methods if "methods" in parts else {}) | (denormals if "denormals" in parts else {})
        for name, (first, second) in kinds.items():
            r = results[name] = compare(first, second, a.pairs, common)
            interval = "({:.2f} to {:.2f})".format
            print(
                f"| {name} | {r['seconds'][0]:.3f}, {r['seconds'][1]:.3f} | {r['steps_ratio']:.2f} "
                f"{interval(*r['steps_interval'])} | {r['places_ratio']:.2f} {interval(*r['places_interval'])} |",
                flush=True,
            )
        memory: dict[str, int] = {}
        if "methods" in parts:
            context = multiprocessing.get_context("spawn")  # a fresh process, so that its peak is the method's own
            with context.Pool(1, maxtasksperchild=1) as pool:
                memory = {m: pool.apply(extra_memory, (common | {"method": m},)) for m in ("full", "lora", "gated")}
        for method, size in memory.items():
            print(
                f"memory above the model's own weights, {method}: {size / 1e6:.0f} MB, {size / memory['full']:.2f} of full's"
            )
    print(json.dumps({"provenance": provenance(threads=torch.get_num_threads()), "speed": results, "memory": memory}))


if __name__ == "__main__":
    main()
