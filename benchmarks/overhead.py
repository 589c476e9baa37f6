"""The time that a step of the engine takes in addition to the model's forward pass: choosing, confirming, bookkeeping, and the softmax.

    python -m benchmarks.overhead            half a minute, with nothing else running on the machine

The result is the median over steps of the time of `Engine.step` minus the time of the forward pass inside it. Passes over
prompts are not counted. The last line is JSON.
"""

import argparse
import json
import time
from statistics import median
from typing import Any

import torch

from benchmarks.rivals import rival
from benchmarks.speed_prompts import prompts_of
from multitoken.checkpoints.provenance import provenance
from multitoken.decoding import Exact, NextToken, Policy
from multitoken.models.model import Model
from multitoken.quickstart.embedded import checkpoint

PROMPTS = 24


def steps_of(model: Model, policy: Policy, at_once: int, adaptive: bool) -> list[tuple[float, float]]:
    """(seconds of a step, seconds of its forward pass)"""
    spent = [0.0]
    forward: Any = model.hf.forward

    def timed(*args: Any, **options: Any) -> Any:
        started = time.perf_counter()
        out = forward(*args, **options)
        spent[0] += time.perf_counter() - started
        return out

    prompts = prompts_of(model, "word-problems", PROMPTS, None)
    found = []
    model.hf.forward = timed  # pyright: ignore[reportAttributeAccessIssue]
    try:
        for first in range(0, PROMPTS, at_once):
            engine = model.decoder.engine(adaptive=adaptive)
            for prompt in prompts[first : first + at_once]:
                engine.add(model.decoder.request(prompt, policy=policy, max_new_tokens=100))
            engine.step()  # the prefill
            while engine.busy:
                spent[0], started = 0.0, time.perf_counter()
                engine.step()
                found.append((time.perf_counter() - started, spent[0]))
    finally:
        del model.hf.forward
    return found[len(found) // 4 :]  # the first ones warm up


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    base, gated, full = map(Model.load, (checkpoint("base"), checkpoint("gated"), rival("full")))
    kinds = {
        "next token": (base, NextToken(), False),
        "gated, Exact 0.7": (gated, Exact(0.7), False),
        "gated, Exact 0.7, adaptive": (gated, Exact(0.7), True),
        "full, Exact 0.5, adaptive": (full, Exact(0.5), True),
    }
    results = []
    print("| method | at once | forward pass, ms | the rest of a step, ms |\n|---|---|---|---|")
    for name, (model, policy, adaptive) in kinds.items():
        for at_once in (1, 8):
            steps = steps_of(model, policy, at_once, adaptive)
            forward = 1e3 * median(inner for _, inner in steps)
            rest = 1e3 * median(whole - inner for whole, inner in steps)
            results.append({"method": name, "at_once": at_once, "forward_ms": forward, "rest_ms": rest})
            print(f"| {name} | {at_once} | {forward:.2f} | {rest:.2f} |", flush=True)
    print(json.dumps({"provenance": provenance(threads=torch.get_num_threads()), "results": results}))


if __name__ == "__main__":
    main()
