"""All steps at a real size on a CPU: a checkpoint of 1.5 B random weights in bfloat16 is loaded, gets a gated adapter, is trained for 20 steps and
decodes under Exact. Training uses the command that a user would type.

    python -m benchmarks.real_size --folder DIR    a quarter of an hour, 14 GB of memory, 4 GB of disk in DIR

The weights have the shape of Qwen3 (hidden 2048, 16 heads over 8, a vocabulary of 151,936), with 24 layers. They are generated
and written to the folder, not downloaded. Memory is the peak of any one of the processes. Random weights write nonsense, so tokens per
step mean nothing here. What is checked is that Exact writes what next-token decoding writes; `evaluation/identity.py` judges ties.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from benchmarks.gpu import SHAPES, random_model
from benchmarks.training_rows import write_rows
from multitoken.checkpoints.provenance import provenance
from multitoken.decoding import Exact, NextToken
from multitoken.evaluation.identity import Judge, compare
from multitoken.models.model import Model
from multitoken.models.weights import weight_files, weight_hash
from multitoken.quickstart.corpus import examples
from multitoken.quickstart.embedded import checkpoint

SHAPE = SHAPES["0.6 B"] | {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 24}
PROMPTS, NEW = 4, 64


def make(folder: Path) -> None:
    """The checkpoint, with the embedded tokenizer, and training rows with their responses."""
    torch.manual_seed(0)
    model = random_model(SHAPE, torch.device("cpu"))
    model.save_pretrained(folder / "base")
    AutoTokenizer.from_pretrained(checkpoint("base")).save_pretrained(folder / "base")
    print(f"{sum(p.numel() for p in model.parameters()) / 1e9:.2f} B weights, bfloat16")
    write_rows(folder / "data.jsonl", 64)


def decode(folder: Path) -> None:
    """In a process of its own: hash the weights, load them, and answer under Exact and next-token decoding."""
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")  # an empty cache: no hash is remembered
    started = time.perf_counter()
    found = weight_hash(weight_files(str(folder / "base")))
    print(f"weights hashed in {time.perf_counter() - started:.1f} s: {found[:19]}")
    started = time.perf_counter()
    model = Model.load(folder / "adapted", dtype="bfloat16")
    print(f"loaded in {time.perf_counter() - started:.1f} s, with the hash remembered")
    prompts = [model.encode(row.prompt) for row in islice(examples("word-problems", "test", PROMPTS), PROMPTS)]
    answers: dict[str, list[list[int]]] = {}
    for name, policy in (("next token", NextToken()), ("Exact", Exact(0.0, k=8))):
        started = time.perf_counter()
        answers[name] = [
            [t for chunk in model.decoder.decode([p], policy=policy, max_new_tokens=NEW) for t in chunk.token_ids]
            for p in prompts
        ]
        print(f"{name}: {sum(map(len, answers[name]))} tokens in {time.perf_counter() - started:.0f} s")
    judge = Judge(model.hf, model.mtp.mask_token_id if model.mtp else None)
    verdicts = [
        compare(ours, theirs, gap=judge.after(prompt))
        for prompt, ours, theirs in zip(prompts, answers["Exact"], answers["next token"], strict=True)
    ]
    print("compared with next-token decoding: " + ", ".join(verdict.value for verdict in verdicts))


def run(*command: Any) -> None:
    print(f"\n$ {' '.join(map(str, command))}", flush=True)
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", *map(str, command)], check=True)
    print(f"({time.perf_counter() - started:.0f} s)", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--only", choices=("make", "decode"), help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.only:
        (make if a.only == "make" else decode)(a.folder)
        return
    a.folder.mkdir(parents=True)
    mine = ("benchmarks.real_size", "--folder", a.folder, "--only")
    run(*mine, "make")
    run(
        "multitoken.cli", "adapt", a.folder / "base", "--data", a.folder / "data.jsonl", "--output", a.folder / "adapted",
        "--method", "gated", "--rank", 32, "--labels", "data", "--steps", 20, "--batch-size", 1, "--max-length", 128,
        "--evaluate-every", 20, "--dtype", "bfloat16",
    )  # fmt: skip
    run(*mine, "decode")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    print(f"\nPeak memory of any process: {peak / 1e9:.1f} GB")
    print(json.dumps({"provenance": provenance(threads=torch.get_num_threads()), "peak": peak}))


if __name__ == "__main__":
    main()
