"""Does the speed of one domain carry over to others? `python -m benchmarks.transfer` (about 15 minutes on 2 cores).

    python -m benchmarks.transfer --train-on word-problems letters      # some of them, for example one per process
    python -m benchmarks.transfer --show                                # table and picture of the results so far

For each domain a gated adapter of the embedded base is trained on prompts of this domain alone, and one more on a mixture of all. All
train for the same number of steps with plain defaults, on responses that the base writes. Each then decodes unseen prompts of every task
under Exact at the threshold that its run stored. Reported are tokens per step, and how many answers are identical to the original's. The
last line is JSON.
"""

import argparse
import itertools
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.word_problems import answer_all, tokens_per_step
from multitoken.checkpoints.atomic import write_text
from multitoken.checkpoints.provenance import provenance
from multitoken.decoding import NextToken
from multitoken.models.model import Model
from multitoken.quickstart.adapt_base import MIXTURE
from multitoken.quickstart.corpus import TASKS, examples, mixed
from multitoken.quickstart.embedded import checkpoint
from multitoken.training.adapt import adapt

ALL = "all of them"
DOMAINS = (*MIXTURE, ALL)
NEW = 200


def prompts_to_train(domain: str, number: int) -> list[str]:
    """Prompts of the split that adapters train on."""
    if domain == ALL:
        return [example.prompt for example in itertools.islice(mixed("adapt", mixture=MIXTURE), number)]
    return [example.prompt for example in examples(domain, "adapt", number)]


def train(domain: str, a: argparse.Namespace, output: Path) -> None:
    data = output.with_suffix(".jsonl")
    write_text(data, "".join(json.dumps({"prompt": p}) + "\n" for p in prompts_to_train(domain, a.prompts)))
    adapt(
        checkpoint("base"),
        data=data,
        output=output,
        steps=a.steps,
        max_new_tokens=NEW,
        seed=a.seed,
        report_to="none",
        console=Console(stderr=True),
    )


def judge(model: Model, number: int) -> dict[str, dict[str, float]]:
    """For each task: tokens per step, and the number of answers that are identical to the original's."""
    found: dict[str, dict[str, float]] = {}
    for task in TASKS:
        prompts = [model.encode(example.prompt) for example in examples(task, "test", number)]
        ours = answer_all(model, prompts, model.default_policy, 16, NEW, task)
        plain = answer_all(model, prompts, NextToken(), 16, NEW, f"{task}, next token")
        same = sum(mine[0] == theirs[0] for mine, theirs in zip(ours, plain, strict=True))
        found[task] = {"tokens_per_step": round(tokens_per_step(ours), 2), "identical": same, "of": number}
    return found


def show(results: list[dict[str, Any]]) -> None:
    print(f"| trained on | {' | '.join(TASKS)} | identical to the original |\n|---|{'---|' * (len(TASKS) + 1)}")
    for r in results:
        cells = [f"{r['tasks'][task]['tokens_per_step']:.2f}" for task in TASKS]
        same, of = (sum(r["tasks"][task][key] for task in TASKS) for key in ("identical", "of"))
        print(f"| {r['domain']} | {' | '.join(cells)} | {same} of {of} |")


def picture(results: list[dict[str, Any]], path: Path) -> None:
    """Rows: the domain of the training. Columns: the decoded task."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), dpi=200, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    values = [[r["tasks"][task]["tokens_per_step"] for task in TASKS] for r in results]
    axes.imshow(values, cmap="Blues", vmin=1, aspect="auto")
    highest = max(map(max, values))
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            axes.text(
                j, i, f"{value:.1f}", ha="center", va="center", color="white" if value > 0.6 * highest else "black"
            )
    axes.set_xticks(range(len(TASKS)), [task.replace("-problems", "\nproblems") for task in TASKS])
    axes.set_yticks(range(len(results)), [r["domain"] for r in results])
    axes.set_xlabel("decoded: tokens per step")
    axes.set_ylabel("trained on")
    figure.savefig(path, format="png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train-on", nargs="+", choices=DOMAINS, default=list(DOMAINS))
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--prompts", type=int, default=600, help="number of training prompts")
    parser.add_argument("--number", type=int, default=24, help="number of unseen prompts of each task")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=Path("runs/transfer"), help="folder with one file per domain")
    parser.add_argument("--picture", type=Path, default=Path("docs/transfer.png"))
    parser.add_argument("--show", action="store_true", help="measure nothing, show the results so far")
    a = parser.parse_args()
    a.results.mkdir(parents=True, exist_ok=True)
    for domain in () if a.show else a.train_on:
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / "adapted"
            train(domain, a, output)
            model = Model.load(output)
            result = {
                "domain": domain,
                "steps": a.steps,
                "threshold": getattr(model.default_policy, "threshold", None),
                "tasks": judge(model, a.number),
                "provenance": provenance(threads=torch.get_num_threads()),
            }
        write_text(a.results / f"{domain}.json", json.dumps(result))
    kept = {domain: a.results / f"{domain}.json" for domain in DOMAINS}
    results = [json.loads(path.read_text()) for path in kept.values() if path.exists()]
    show(results)
    if len(results) == len(DOMAINS):
        picture(results, a.picture)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
