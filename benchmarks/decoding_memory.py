"""The peak memory that decoding takes in addition to the weights: transformers' greedy `generate`, and the engine.

    python -m benchmarks.decoding_memory            two minutes; nothing is timed

Each method and batch size runs in a process of its own, after a short answer that loads everything that is loaded only once. On
a CPU, memory is the growth of the process's resident size. The last line is JSON.
"""

import argparse
import json
import multiprocessing
from typing import Any

import torch

from benchmarks.rivals import rival
from benchmarks.speed_prompts import NEW, prompts_of
from multitoken.checkpoints.provenance import provenance
from multitoken.decoding import Exact, NextToken, Policy
from multitoken.models.model import Model
from multitoken.quickstart.embedded import checkpoint
from multitoken.training.memory import bytes_of, peak_memory

METHODS: dict[str, tuple[str, Policy | None]] = {
    "transformers generate": ("base", None),
    "next token": ("base", NextToken()),
    "gated, Exact 0.7, adaptive": ("gated", Exact(0.7)),
    "full, Exact 0.5, adaptive": ("full", Exact(0.5)),
}
BATCHES = (1, 8, 32)


def answer(model: Model, policy: Policy | None, prompts: list[list[int]], tokens: int) -> None:
    if policy is not None:
        for _ in model.decoder.decode(prompts, policy=policy, max_new_tokens=tokens, adaptive=policy != NextToken()):
            pass
        return
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    generate: Any = model.hf.generate
    generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=tokens)


def measure(name: str, batch: int) -> dict[str, Any]:
    """Bytes, measured in this process: the size of the weights, and the peak above them."""
    which, policy = METHODS[name]
    model = Model.load(rival(which) if which == "full" else checkpoint(which))
    prompts = prompts_of(model, "word-problems", batch + 1, None)
    answer(model, policy, prompts[:1], 16)
    with peak_memory(model.hf.device) as peak:
        answer(model, policy, prompts[1:], NEW)
    weights = bytes_of(iter([*model.hf.parameters(), *model.hf.buffers()]))
    return {"method": name, "batch": batch, "weights": weights, "peak": peak.bytes}


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    context = multiprocessing.get_context("spawn")  # a fresh process, so that its peak is the method's own
    results = []
    print(f"| method | weights, MB | {' | '.join(f'{b} at once, MB more' for b in BATCHES)} |")
    print(f"|---|---{'|---' * len(BATCHES)}|")
    for name in METHODS:
        mine = []
        for batch in BATCHES:
            with context.Pool(1) as pool:
                mine.append(pool.apply(measure, (name, batch)))
        results += mine
        peaks = [f"{r['peak'] / 1e6:.0f}" for r in mine]
        print(f"| {name} | {mine[0]['weights'] / 1e6:.0f} | {' | '.join(peaks)} |", flush=True)
    print(json.dumps({"provenance": provenance(threads=torch.get_num_threads()), "results": results}))


if __name__ == "__main__":
    main()
