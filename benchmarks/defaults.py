"""What the defaults of a method give on a base: `python -m benchmarks.defaults --base DIR --task word-problems --minutes 4`.

Trains once for a fixed time with plain defaults, or with `--option name=value` in their place. Then it measures, on unseen
prompts: right answers before and after (word problems), the share of next tokens that are still the original's, and tokens per
step of Exact at the threshold that the run itself stored. The last line is JSON, and is appended to `--log`.

Word problems come with the generator's responses, as a user's rows would. For stories the base writes the responses itself.
They are saved next to the log for the next run.
"""

import argparse
import itertools
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.story_prompts import prompts as story_prompts
from benchmarks.word_problems import answer_all, tokens_per_step
from multitoken.checkpoints.atomic import write_text
from multitoken.checkpoints.provenance import provenance
from multitoken.config import make_config
from multitoken.decoding import NextToken
from multitoken.models.model import Model
from multitoken.quickstart.corpus import examples
from multitoken.quickstart.embedded import checkpoint, embedded_task
from multitoken.training.adapt import adapt

TASKS = ("word-problems", "stories")
NEW = {"word-problems": 320, "stories": 160}


def training_rows(task: str, number: int, base: Path, kept: Path) -> list[dict[str, str]]:
    """Rows to train on. The base's own stories are read from the file `kept`, and are written there if it does not exist."""
    if task == "word-problems":
        problems = itertools.islice(examples("word-problems", "adapt", number), number)
        return [{"prompt": p.prompt, "response": p.response} for p in problems]
    if not kept.exists():
        write_text(kept, json.dumps(_stories(base, list(itertools.islice(story_prompts("train"), number)))))
    return json.loads(kept.read_text())


def _stories(base: Path, prompts: list[str]) -> list[dict[str, str]]:
    model = Model.load(base)
    answers = answer_all(model, [model.encode(p) for p in prompts], NextToken(), 64, NEW["stories"], "stories")
    texts = (str(model.tokenizer.decode(list(ids), skip_special_tokens=True)) for ids, _, _ in answers)
    return [{"prompt": p, "response": t} for p, t in zip(prompts, texts, strict=True)]


def judge(model: Model, task: str, number: int, policies: list[Any]) -> dict[str, Any]:
    """The share of right answers (None for stories), and the answers of each policy."""
    if not number:
        return {"right": None, "answers": [[] for _ in policies]}
    if task == "word-problems":
        questions = embedded_task(task, number).questions
        prompts = [model.encode(q.prompt) for q in questions]
    else:
        questions = None
        prompts = [model.encode(p) for p in itertools.islice(story_prompts("test"), number)]
    answers = [answer_all(model, prompts, policy, 32, NEW[task], policy.name) for policy in policies]
    right = None
    if questions is not None:
        grader = embedded_task(task, number).grader
        texts = (str(model.tokenizer.decode(list(ids), skip_special_tokens=True)) for ids, _, _ in answers[0])
        right = sum(grader.grade(t, q.answer) is True for t, q in zip(texts, questions, strict=True)) / number
    return {"right": right, "answers": answers}


def option(text: str) -> tuple[str, Any]:
    """ "k_max=8" -> ("k_max", 8)"""
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r}: expected NAME=VALUE, such as k_max=8")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, default=checkpoint("base"))
    parser.add_argument("--task", choices=TASKS, default="word-problems")
    parser.add_argument("--method", default="full")
    parser.add_argument("--minutes", type=float, default=4.0)
    parser.add_argument("--rows", type=int, default=3000)
    parser.add_argument(
        "--prompts", type=int, default=96, help="number of unseen prompts; 0: only the run's own validation"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--option", type=option, action="append", default=[], help="NAME=VALUE, an option of adapt; repeatable"
    )
    parser.add_argument("--log", type=Path, default=Path("runs/defaults.jsonl"))
    parser.add_argument("--keep", type=Path, help="copy the adapted model to this folder")
    a = parser.parse_args()
    a.log.parent.mkdir(parents=True, exist_ok=True)
    rows = training_rows(a.task, a.rows, a.base, a.log.parent / f"stories-{a.base.name}-{a.rows}.json")
    with tempfile.TemporaryDirectory() as folder:
        data, output = Path(folder) / "data.jsonl", Path(folder) / "adapted"
        write_text(data, "".join(json.dumps(row) + "\n" for row in rows))
        options = {"method": a.method, "minutes": a.minutes, "seed": a.seed, "report_to": "none", **dict(a.option)}
        config = make_config(model=a.base, data=data, output=output, **options)
        done = adapt(config=config, console=Console(stderr=True))
        model = Model.load(output)
        policy = model.default_policy
        ours = judge(model, a.task, a.prompts, [NextToken(), policy])
        if a.keep is not None:
            shutil.copytree(output, a.keep, dirs_exist_ok=True)
    before = judge(Model.load(a.base), a.task, a.prompts, [NextToken()])
    plain, exact = ours["answers"]
    assert done.validation is not None
    result = {
        "base": a.base.name,
        "task": a.task,
        "method": a.method,
        "options": dict(a.option),
        "minutes": a.minutes,
        "seed": a.seed,
        "steps": done.steps,
        "right_before": before["right"],
        "right": ours["right"],
        "kept": done.validation.kept,
        "same_texts": sum(o[0] == b[0] for o, b in zip(plain, before["answers"][0], strict=True)) / max(1, a.prompts),
        "threshold": getattr(policy, "threshold", None),
        "expected": done.validation.tokens_per_step,
        "agreement": done.validation.agreement[:8],
        "exact": round(tokens_per_step(exact), 3) if a.prompts else None,
        "provenance": provenance(threads=torch.get_num_threads()),
    }
    with a.log.open("a") as log:
        print(json.dumps(result), file=log)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
