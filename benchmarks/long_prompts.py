"""Tokens per step after long prompts: `python -m benchmarks.long_prompts --model gated=DIR --number 24`.

A prompt of N tokens is a conversation: earlier word problems with the generator's answers, then a new problem. It has as many
earlier turns as fit in N tokens. The policy is Exact at the threshold that the checkpoint stores; outputs have at most 120
tokens. The last line is JSON.
"""

import argparse
import json
from typing import Any

import torch

from benchmarks.options import labelled
from benchmarks.word_problems import answer_all, tokens_per_step
from multitoken.checkpoints.provenance import provenance
from multitoken.models.model import Model
from multitoken.quickstart.corpus import Example, examples

LENGTHS = (64, 256, 1024, 1900)
NEW = 120


def conversations(model: Model, length: int, number: int) -> list[list[int]]:
    """Prompts of at most `length` tokens, as close to it as whole turns allow. A problem that alone is longer is a prompt by
    itself."""
    earlier = iter(examples("word-problems", "speed", 40 * number))
    found = []
    for problem in examples("word-problems", "test", number):
        turns: list[dict[str, str]] = []
        ids = model.encode([*turns, _user(problem)])
        while True:
            before = next(earlier)
            longer = [_user(before), {"role": "assistant", "content": before.response}, *turns]
            more = model.encode([*longer, _user(problem)])
            if len(more) > length:
                break
            turns, ids = longer, more
        found.append(ids)
    return found


def _user(problem: Example) -> dict[str, str]:
    return {"role": "user", "content": problem.prompt}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=labelled, action="append", required=True, help="LABEL=DIR; repeatable")
    parser.add_argument("--number", type=int, default=24, help="number of prompts at each length")
    parser.add_argument("--batch", type=int, default=12)
    a = parser.parse_args()
    results: list[dict[str, Any]] = []
    for label, folder in a.model:
        model = Model.load(folder)
        for length in LENGTHS:
            prompts = conversations(model, length, a.number)
            answers = answer_all(model, prompts, model.default_policy, a.batch, NEW, f"{label}, {length}")
            mean = sum(map(len, prompts)) / len(prompts)
            speed = tokens_per_step(answers)
            results.append({"model": label, "length": length, "mean": round(mean), "tokens_per_step": round(speed, 2)})
            print(f"| {label} | {length} | {mean:.0f} | {speed:.2f} |", flush=True)
    print(json.dumps({"provenance": provenance(threads=torch.get_num_threads()), "results": results}))


if __name__ == "__main__":
    main()
