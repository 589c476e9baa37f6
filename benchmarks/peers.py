"""Methods for the same purpose, compared on the same work: `python -m benchmarks.peers` (about 30 minutes on 2 cores).

    python -m benchmarks.peers --minutes 4 --prompts 100
    python -m benchmarks.peers --base DIR --data stories.jsonl --task unseen.jsonl --max-new-tokens 128 --prompts 40    another base

Every adapted model is trained by `multitoken adapt` with plain defaults, each for the same number of minutes, on prompts of the task whose
responses the base writes itself. Then every method answers the same unseen prompts greedily at batch 1. The methods are interleaved in one
process with one clock. Measured are: how many answers are right, how many are word for word the original's, tokens per forward pass of the
large model (including the prefill, in which every method writes one), and tokens a second. Prompt lookup and assisted generation are
transformers' own. For UNO only the passes of its cycle are counted, by `benchmarks.uno_cycle`; it has no speed. The last line is JSON.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from transformers import AutoModelForCausalLM

from benchmarks.rivals import rival
from benchmarks.tables import with_interval
from benchmarks.uno_cycle import uno
from multitoken.checkpoints.atomic import write_text
from multitoken.checkpoints.provenance import provenance
from multitoken.decoding import ConfAdapt, NextToken, Policy
from multitoken.evaluation.statistics import ratio_interval
from multitoken.evaluation.tasks import Task, load_task
from multitoken.models.model import Model
from multitoken.quickstart.corpus import examples
from multitoken.quickstart.embedded import checkpoint, embedded_task
from multitoken.training.adapt import adapt

TRAINED: dict[str, dict[str, Any]] = {
    "full": {"method": "full"},
    "free": {"method": "full", "free_directions": 1.0},
    "lora": {"method": "lora"},
    "gated": {"method": "gated"},
    "noise": {"method": "gated", "masks": "noise"},
}
WARM_UP = 2
UNO_WIDTH = 8
PROGRESS = Console(stderr=True)

Answer = Callable[[list[int]], tuple[list[int], int]]  # prompt -> (new token ids, forward passes)


@dataclass
class Entrant:
    """A method, and its answers. has_clock: whether its seconds mean anything."""

    name: str
    answer: Answer
    has_clock: bool = True
    ids: list[list[int]] = field(default_factory=list)
    passes: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


def train(base: Path, data: Path, minutes: float, length: dict[str, Any], folder: Path) -> dict[str, Model]:
    """The adapted models, by name. Models that are already in the folder are not trained again."""
    for name, options in TRAINED.items():
        if not (folder / name).exists():
            PROGRESS.rule(name)
            how: dict[str, Any] = {"minutes": minutes, "report_to": "none", **length, **options}
            adapt(base, data=data, output=folder / name, console=PROGRESS, **how)
    return {name: Model.load(folder / name, dtype="float32") for name in TRAINED}


def prompts_of(task: str, number: int, folder: Path) -> Path:
    """A file of prompts of an embedded task, to train on."""
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / "prompts.jsonl"
    write_text(data, "".join(json.dumps({"prompt": e.prompt}) + "\n" for e in examples(task, "adapt", number)))
    return data


def ours(model: Model, policy: Policy, new: int) -> Answer:
    def answer(prompt: list[int]) -> tuple[list[int], int]:
        chunks = list(model.decoder.decode([prompt], policy=policy, max_new_tokens=new))
        return [t for chunk in chunks for t in chunk.token_ids], len(chunks)

    return answer


def generates(model: Model, new: int, **options: Any) -> Answer:
    """transformers' greedy `generate`, with its forward passes counted."""
    hf: Any = model.hf

    def answer(prompt: list[int]) -> tuple[list[int], int]:
        passes = 0

        def count(*_: Any) -> None:
            nonlocal passes
            passes += 1

        hook = hf.register_forward_hook(count)
        row = torch.tensor([prompt])
        out = hf.generate(row, attention_mask=torch.ones_like(row), do_sample=False, max_new_tokens=new, **options)
        hook.remove()
        return out[0, len(prompt) :].tolist(), passes

    return answer


def entrants_of(base: Model, adapted: dict[str, Model], draft: str | None, new: int) -> list[Entrant]:
    """All methods; the original is the first."""
    entrants = [
        Entrant("original, next token", ours(base, NextToken(), new)),
        Entrant("transformers, greedy", generates(base, new)),
        Entrant("transformers, prompt lookup", generates(base, new, prompt_lookup_num_tokens=8)),
    ]
    if draft is not None:
        assistant = AutoModelForCausalLM.from_pretrained(draft, dtype=torch.float32).eval()
        entrants.append(
            Entrant("transformers, draft model", generates(base, new, assistant_model=assistant)),
        )
    entrants += [
        Entrant("UNO's two passes", lambda prompt: uno(adapted["noise"], prompt, UNO_WIDTH, new), has_clock=False),
        Entrant("every direction free, ConfAdapt 0.9 (the paper's method)", ours(adapted["free"], ConfAdapt(0.9), new)),
        Entrant("full, next token", ours(adapted["full"], NextToken(), new)),
        Entrant("full, ConfAdapt 0.99", ours(adapted["full"], ConfAdapt(0.99), new)),
        Entrant("full, Exact", ours(adapted["full"], adapted["full"].default_policy, new)),
        Entrant("lora, Exact", ours(adapted["lora"], adapted["lora"].default_policy, new)),
        Entrant("gated, ConfAdapt 0.99", ours(adapted["gated"], ConfAdapt(0.99), new)),
        Entrant("gated, Exact", ours(adapted["gated"], adapted["gated"].default_policy, new)),
    ]
    return entrants


def run(entrants: list[Entrant], prompts: list[list[int]]) -> None:
    """Every method answers every prompt, and each prompt starts with another method. The first prompts warm up."""
    for i, prompt in enumerate(track(prompts, description="answering", console=PROGRESS)):
        first = i % len(entrants)
        for entrant in (*entrants[first:], *entrants[:first]):
            started = time.perf_counter()
            ids, passes = entrant.answer(prompt)
            seconds = time.perf_counter() - started
            if i >= WARM_UP:
                entrant.ids.append(ids)
                entrant.passes.append(passes)
                entrant.seconds.append(seconds)


def results_of(entrants: list[Entrant], task: Task, base: Model) -> list[dict[str, Any]]:
    original, questions = entrants[0], task.questions[WARM_UP:]
    results = []
    for entrant in entrants:
        texts = [str(base.tokenizer.decode(ids, skip_special_tokens=True)) for ids in entrant.ids]
        grades = [task.grader.grade(text, q.answer) for text, q in zip(texts, questions, strict=True)]
        rates = [len(ids) / s for ids, s in zip(entrant.ids, entrant.seconds, strict=True)]
        theirs = [len(ids) / s for ids, s in zip(original.ids, original.seconds, strict=True)]
        ratio = ratio_interval(list(zip(rates, theirs, strict=True)))
        results.append(
            {
                "method": entrant.name,
                "right": None if None in grades else sum(map(bool, grades)) / len(grades),
                "identical": sum(a == b for a, b in zip(entrant.ids, original.ids, strict=True)),
                "tokens_per_pass": sum(map(len, entrant.ids)) / sum(entrant.passes),
                "tokens_per_second": median(rates) if entrant.has_clock else None,
                "speedup": ratio.median if entrant.has_clock else None,
                "speedup_interval": ratio.interval if entrant.has_clock else None,
            }
        )
    return results


def show(results: list[dict[str, Any]], prompts: int, task: str) -> None:
    print(
        f"\n{prompts} {task}:\n\n| method | right | identical | tokens per pass | tokens per second | against next token (95%) |"
    )
    print("|---|---|---|---|---|---|")
    for r in results:
        right = "-" if r["right"] is None else f"{r['right']:.1%}"
        speed = "- | -"
        if r["speedup"] is not None:
            speed = f"{r['tokens_per_second']:.0f} | {with_interval(r['speedup'], r['speedup_interval'])}"
        print(f"| {r['method']} | {right} | {r['identical']} | {r['tokens_per_pass']:.2f} | {speed} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, default=checkpoint("base"))
    parser.add_argument("--draft", help="a draft model with the base's tokenizer; the embedded base has its own")
    parser.add_argument("--task", default="word-problems", help="an embedded task, or a JSONL file of unseen prompts")
    parser.add_argument("--data", type=Path, help="prompts to train on, for a JSONL task")
    parser.add_argument("--max-new-tokens", type=int, help="limit for answers and for training responses")
    parser.add_argument("--minutes", type=float, default=4.0, help="training time of each model")
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--trained-on", type=int, default=700, help="number of training prompts")
    parser.add_argument("--models", type=Path, default=Path("../runs/peers"), help="folder of the trained models")
    a = parser.parse_args()
    draft = a.draft or (str(rival("draft")) if a.base == checkpoint("base") else None)
    base = Model.load(a.base, dtype="float32")
    length = {} if a.max_new_tokens is None else {"max_new_tokens": a.max_new_tokens}
    task = (embedded_task if a.data is None else load_task)(a.task, a.prompts + WARM_UP, **length)
    data = a.data or prompts_of(a.task, a.trained_on, a.models)
    adapted = train(a.base, data, a.minutes, length, a.models)
    entrants = entrants_of(base, adapted, draft, task.max_new_tokens)
    run(entrants, [base.encode(question.prompt) for question in task.questions])
    results = results_of(entrants, task, base)
    show(results, a.prompts, a.task)
    print(json.dumps({"results": results, "minutes": a.minutes, **provenance(threads=torch.get_num_threads())}))


if __name__ == "__main__":
    main()
