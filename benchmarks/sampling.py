"""Is sampled text as fast as greedy text? Tokens per step and per second of the engine by temperature, and which outputs differ.

    python -m benchmarks.sampling                                    the embedded gated adapter, about 25 minutes on 2 cores
    python -m benchmarks.sampling --tasks word-problems --temperatures 0 0.8 --prompts 64 --pairs 0
    python -m benchmarks.sampling --model held-out=DIR --model stories=DIR --policy exact:0.7

A model with a chat template answers the embedded tasks. A model without one, such as an adapted stories260K, continues stories
(128 new tokens). Every output is compared with next-token decoding under the same seed: none may differ. Ties are judged in
float64 with the noise and counted separately. Tokens per step need no clock. They are measured in batches, with a bootstrap
interval over the prompts. Tokens a second are measured at batch 1 in pairs, after a warm-up: next-token decoding of the bare
base and our decoding answer the same prompt before the next prompt starts. A ratio is the median over the pairs with its 95%
interval. All masks are fed. The last line is JSON.
"""

import argparse
import json
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.progress import track

from benchmarks import story_prompts
from benchmarks.options import Entrant, entrants_in, labelled
from benchmarks.word_problems import answer_all, tokens_per_step
from multitoken.checkpoints.provenance import provenance
from multitoken.decoding import NextToken, Policy
from multitoken.decoding.sampling import Sampling
from multitoken.evaluation.identity import Identity, Judge, compare
from multitoken.evaluation.measure import label_of, parse_policy
from multitoken.evaluation.sampled import sampling_of
from multitoken.evaluation.statistics import ratio_interval, ratio_of_sums_interval
from multitoken.models.model import Model
from multitoken.quickstart.embedded import checkpoint, embedded_task

STORIES = "stories"
TASKS = ("word-problems", "letters", "counting", "repeating", STORIES)
TEMPERATURES = (0.0, 0.6, 0.8, 1.0)
STORY_TOKENS = 128
WARM_UP = 2


def tasks_of(model: Model) -> tuple[str, ...]:
    """The tasks that it can do: a model without a chat template was never trained on questions."""
    return tuple(task for task in TASKS if (task == STORIES) == (model.tokenizer.chat_template is None))


def prompts_of(model: Model, task: str, number: int, split: str) -> tuple[list[list[int]], int]:
    """(prompts, the maximum number of new tokens)"""
    if task == STORIES:
        texts = list(islice(story_prompts.prompts("test"), number))
        return [model.encode(text) for text in texts], STORY_TOKENS
    found = embedded_task(task, number, split=split)
    return [model.encode(question.prompt) for question in found.questions], found.max_new_tokens


def count(
    entrant: Entrant, task: str, policies: list[Policy], sampling: Sampling | None, number: int, batch: int
) -> Iterator[dict[str, Any]]:
    """Tokens per step and the outputs that differ, without a clock: one result for each policy."""
    prompts, new = prompts_of(entrant.adapted, task, number, "test")
    where = f"{entrant.label}, {task}, temperature {sampling.temperature if sampling else 0:g}"
    plain = answer_all(entrant.plain, prompts, NextToken(), batch, new, f"{where}, next token", sampling)
    assert entrant.adapted.mtp is not None
    judge = Judge(entrant.plain.hf, entrant.adapted.mtp.mask_token_id)
    for policy in policies:
        ours = answer_all(entrant.adapted, prompts, policy, batch, new, f"{where}, {label_of(policy)}", sampling)
        found = [
            compare(mine[0], theirs[0], gap=judge.after(prompt, sampling, row=i))
            for i, (mine, theirs, prompt) in enumerate(zip(ours, plain, prompts, strict=True))
        ]
        yield {
            "policy": label_of(policy),
            "prompts": number,
            "tokens": sum(len(ids) for ids, _, _ in ours),
            "different": found.count(Identity.DIFFERENT),
            "ties": found.count(Identity.TIE),
            "tokens_per_step": tokens_per_step(ours),
            "tokens_per_step_interval": ratio_of_sums_interval(
                [(len(ids) - prefill, passes - 1) for ids, prefill, passes in ours]
            ),
        }


def race(
    entrant: Entrant, task: str, policies: list[Policy], sampling: Sampling | None, pairs: int
) -> list[dict[str, Any]]:
    """Tokens a second compared with next-token decoding of the same prompts with the same seeds, at batch 1: one result for each
    policy."""
    prompts, new = prompts_of(entrant.adapted, task, WARM_UP + pairs, "speed")
    runs: list[tuple[Model, Policy]] = [(entrant.plain, NextToken()), *((entrant.adapted, p) for p in policies)]
    rates: list[list[float]] = [[] for _ in runs]
    description = f"{entrant.label}, {task}, racing"
    for i, prompt in enumerate(track(prompts, description=description, console=Console(stderr=True))):
        first = i % len(runs)
        for place in (*range(first, len(runs)), *range(first)):
            (model, policy), started = runs[place], time.perf_counter()
            chunks = list(
                model.decoder.decode([prompt], policy=policy, max_new_tokens=new, sampling=sampling, first_row=i)
            )
            if i >= WARM_UP:
                rates[place].append(sum(len(c.token_ids) for c in chunks) / (time.perf_counter() - started))
    results = []
    for mine in rates[1:]:
        ratio = ratio_interval(list(zip(mine, rates[0], strict=True)))
        results.append(
            {
                "pairs": pairs,
                "tokens_per_second": median(mine),
                "next_token_per_second": median(rates[0]),
                "speedup": ratio.median,
                "speedup_interval": ratio.interval,
            }
        )
    return results


def measure(entrant: Entrant, task: str, temperature: float, a: argparse.Namespace) -> list[dict[str, Any]]:
    """The results of one model and task at one temperature."""
    sampling = sampling_of(temperature, a.top_p, seed=a.seed) if temperature else None
    policies: list[Policy] = a.policy or [entrant.adapted.default_policy]
    counted = list(count(entrant, task, policies, sampling, a.prompts, a.batch))
    raced = race(entrant, task, policies, sampling, a.pairs) if a.pairs else [{}] * len(policies)
    facts = {"model": entrant.label, "task": task, "temperature": temperature, "top_p": sampling and a.top_p}
    return [{**facts, **c, **r} for c, r in zip(counted, raced, strict=True)]


def show(results: list[dict[str, Any]]) -> None:
    """A table for each model and task."""

    def between(interval: Any) -> str:
        return "({:.2f} to {:.2f})".format(*interval) if interval else "(too few for an interval)"

    first = results[0]
    columns = "policy | outputs that differ | ties | tokens per step (95%) | next token, tokens per second | tokens per second | against next token (95%)"
    print(f"\n| {first['model']}, {first['task']}, {first['prompts']} prompts: temperature | {columns} |")
    print(f"|---{'|---' * (columns.count('|') + 1)}|")
    for r in results:
        steps = f"{r['tokens_per_step']:.2f} {between(r['tokens_per_step_interval'])}"
        speed = "- | - | -"
        if "speedup" in r:
            rates = f"{r['next_token_per_second']:.0f} | {r['tokens_per_second']:.0f}"
            speed = f"{rates} | {r['speedup']:.2f} {between(r['speedup_interval'])}"
        print(
            f"| {r['temperature']:g} | {r['policy']} | {r['different']} | {r['ties']} | {steps} | {speed} |", flush=True
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", type=labelled, action="append", metavar="LABEL=DIR", help="an adapted model; repeatable"
    )
    parser.add_argument("--base", type=Path, help="base of the gated adapters, if not where they say")
    parser.add_argument(
        "--policy", type=parse_policy, action="append", help="default: the checkpoint's own; repeatable"
    )
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--temperatures", nargs="+", type=float, default=list(TEMPERATURES))
    parser.add_argument("--top-p", type=float, default=0.95)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--pairs", type=int, default=20, help="number of timed pairs; 0: time nothing")
    a = parser.parse_args()
    a.model = a.model or [("gated", checkpoint("gated"))]
    for name, lowest in (("prompts", 1), ("batch", 1), ("pairs", 0)):
        if getattr(a, name) < lowest:
            parser.error(f"--{name} is {getattr(a, name)}; expected at least {lowest}")
    try:
        for temperature in filter(None, a.temperatures):
            sampling_of(temperature, a.top_p, seed=a.seed)
    except ValueError as error:
        parser.error(str(error))
    entrants = entrants_in(parser, a)
    work = [(e, task) for e in entrants for task in tasks_of(e.adapted) if task in a.tasks]
    if not work:
        parser.error(f"none of the models can do {', '.join(a.tasks)}; {STORIES} needs one without a chat template")
    results: list[dict[str, Any]] = []
    for entrant, task in work:
        mine = [r for temperature in a.temperatures for r in measure(entrant, task, temperature, a)]
        show(mine)
        results += mine
    facts = provenance(threads=torch.get_num_threads(), top_p=a.top_p, seed=a.seed)
    print(json.dumps({"provenance": facts, "results": results}))


if __name__ == "__main__":
    main()
