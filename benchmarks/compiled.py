"""What compiled steps gain: `python -m benchmarks.compiled` (about ten minutes on one core, most of it compilation).

The same model decodes the same prompts with plain and with compiled layers, interleaved, at batch 1 and in larger batches, under next-token
decoding and under the model's own policy. Ratios are medians over the rounds; every output is compared. The last line is JSON.
"""

import argparse
import json
import time
from statistics import median

import torch

from benchmarks.speed_prompts import prompts_of
from multitoken.checkpoints.provenance import provenance
from multitoken.decoding import NextToken, Policy
from multitoken.evaluation.measure import label_of
from multitoken.models.model import Model
from multitoken.quickstart.embedded import checkpoint


def run(model: Model, prompts: list[list[int]], policy: Policy, rows: int) -> tuple[float, list[list[int]]]:
    """Tokens a second, and the answers."""
    answers: list[list[int]] = [[] for _ in prompts]
    started = time.perf_counter()
    for first in range(0, len(prompts), rows):
        for chunk in model.decoder.decode(
            prompts[first : first + rows], policy=policy, max_new_tokens=120, first_row=first
        ):
            answers[chunk.row] += chunk.token_ids
    return sum(map(len, answers)) / (time.perf_counter() - started), answers


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default=str(checkpoint("gated")))
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--rounds", type=int, default=5)
    a = parser.parse_args()
    plain, compiled = (Model.load(a.model, dtype="float32", device="cpu") for _ in range(2))
    prompts = prompts_of(plain, "word-problems", a.prompts, None)
    started = time.perf_counter()
    compiled.compile()
    seconds = time.perf_counter() - started
    print(f"compiled in {seconds:.0f} s")
    print("| policy | batch size | plain, tokens per second | compiled | times as fast | outputs that differ |")
    print("|---|---|---|---|---|---|")
    results = []
    for policy in (NextToken(), plain.default_policy):
        for rows in a.rows:
            rates, differ = [], 0
            for number in range(a.rounds + 1):
                (slow, theirs), (fast, ours) = (run(model, prompts, policy, rows) for model in (plain, compiled))
                if number:  # the first round warms up
                    rates.append((slow, fast))
                differ = sum(mine != yours for mine, yours in zip(ours, theirs, strict=True))
            before, after = (median(rate[i] for rate in rates) for i in (0, 1))
            times = median(fast / slow for slow, fast in rates)
            print(
                f"| {label_of(policy)} | {rows} | {before:.0f} | {after:.0f} | {times:.2f} | {differ} of {len(prompts)} |",
                flush=True,
            )
            results.append(
                {
                    "policy": label_of(policy),
                    "rows": rows,
                    "plain": before,
                    "compiled": after,
                    "times": times,
                    "differ": differ,
                }
            )
    print(json.dumps({"compile_seconds": seconds, "results": results, **provenance(threads=torch.get_num_threads())}))


if __name__ == "__main__":
    main()
