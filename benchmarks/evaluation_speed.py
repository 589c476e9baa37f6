"""How much faster an evaluation is in batches: the same questions and policies, one at a time and in batches.

python -m benchmarks.evaluation_speed             48 word problems, next token and eight policies, batches of 1, 8 and 32
torchrun --nproc-per-node 2 -m benchmarks.evaluation_speed --batches 32         the questions split between two processes
"""

import argparse
import json
import time

from multitoken.checkpoints.provenance import provenance
from multitoken.decoding import ConfAdapt, Exact
from multitoken.evaluation.measure import label_of
from multitoken.evaluation.run import evaluate
from multitoken.models.model import Model
from multitoken.processes import Processes
from multitoken.quickstart.embedded import checkpoint, embedded_task

POLICIES = (*(Exact(t) for t in (0.3, 0.5, 0.7, 0.9)), *(ConfAdapt(t) for t in (0.99, 0.95, 0.9, 0.8)))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--prompts", type=int, default=48)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    a = parser.parse_args()
    model = Model.load(checkpoint("gated"), device="cpu")
    task = embedded_task("word-problems", a.prompts)
    seconds, outputs = {}, {}
    for batch in a.batches:
        started = time.perf_counter()
        rows = evaluate({"adapted": model}, task, {label_of(p): p for p in POLICIES}, batch_size=batch)
        seconds[batch] = time.perf_counter() - started
        outputs[batch] = [(r.label, r.accuracy, r.tokens, r.identical_to_original) for r in rows]
        if not Processes.here().first:
            continue
        print(
            f"batches of {batch}: {seconds[batch]:.0f} s, {seconds[a.batches[0]] / seconds[batch]:.2f} times as fast",
            flush=True,
        )
    if not Processes.here().first:
        return
    same = all(outputs[batch] == outputs[a.batches[0]] for batch in a.batches)
    print(
        json.dumps(
            {"seconds": seconds, "same_numbers": same, "processes": Processes.here().number, "provenance": provenance()}
        )
    )


if __name__ == "__main__":
    main()
