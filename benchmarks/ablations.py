"""Measures what each choice of a recipe is worth: objective, data, method and optimizer, changed one at a time.

    python -m benchmarks.ablations --output runs/ablations              two hours on one core
    python -m benchmarks.ablations --output runs/ablations --seeds 2    one seed; finished runs are kept and not repeated
    python -m benchmarks.ablations --output runs/ablations --show       trains nothing, shows the results so far
    python -m benchmarks.ablations --output runs/masks --only masks     the arms of this group and the reference

Every arm trains for the same time from the embedded base, on the same 700 word problems, with three seeds each. The number of
steps is fixed beforehand: a few steps of all arms are timed, interleaved, and each arm gets the number of steps that take as
long as the reference's. If the machine slows down later, the comparison stays fair. The arms are judged on the same unseen problems
by tokens per step under Exact and by right answers under next-token decoding. The right answers show what training itself
cost; Exact adds nothing to that cost. The command prints the table and draws the picture. The last line is JSON.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console

from benchmarks.training_speed import Stepper
from benchmarks.word_problems import answer_all, tokens_per_step
from multitoken.checkpoints.atomic import write_text
from multitoken.checkpoints.provenance import provenance
from multitoken.config import make_config
from multitoken.decoding import Exact, NextToken, Sampling
from multitoken.evaluation.statistics import ratio_interval
from multitoken.models.model import Model
from multitoken.quickstart.corpus import Example, examples
from multitoken.quickstart.embedded import checkpoint, embedded_task
from multitoken.training.adapt import adapt

PROMPTS = 700
COMMON: dict[str, Any] = {
    "batch_size": 8,
    "blocks_per_row": 16,
    "dtype": "bfloat16",
    "validation_share": 0.0,
    "report_to": "none",
}
REFERENCE: dict[str, Any] = {
    "method": "gated",
    "rank": 64,
    "labels": "data",
    "k_growth": 0.0,
    "join_share": 0.0,
    "head_rank": 0,  # the tables in docs/ablations.md were measured before the draft head existed
    "loss_weights": "reach",
    "optimizer": "muon",
    "learning_rate": 8e-3,
    "k_max": 16,
}


@dataclass(frozen=True)
class Arm:
    """A recipe: the reference with `change`, on one kind of responses (greedy, sampled, given). None removes an option."""

    group: str
    name: str
    change: dict[str, Any]
    responses: str = "greedy"

    @property
    def options(self) -> dict[str, Any]:
        return {key: value for key, value in (REFERENCE | self.change).items() if value is not None}


_EVERYWHERE = {"method": "full", "rank": None, "learning_rate": 2e-3, "next_token_weight": 10.0, "free_directions": 1.0}
_PAPER = _EVERYWHERE | {"labels": "online", "loss_weights": "even", "next_token_weight": 0.0}
ARMS = (
    Arm("reference", "gated, rank 64, reach, labels of the data, Muon, k 16", {}),
    Arm("objective", "cut at the first disagreement", {"loss_weights": "even", "loss_until": "first-disagreement"}),
    Arm("objective", "even weights to the end of the block", {"loss_weights": "even"}),
    Arm("objective", "the paper's: online labels, even weights", {"labels": "online", "loss_weights": "even"}),
    Arm("objective", "online labels, reach", {"labels": "online"}),
    Arm("objective", "soft teacher, reach", {"labels": "online", "teacher": "soft"}),
    Arm("k", "k 8", {"k_max": 8}),
    Arm("k", "k grows from 4 to 16 over the first four fifths of the run", {"k_growth": 0.8}),
    Arm("k", "k always 16", {"k_schedule": "fixed"}),
    Arm("masks", "random tokens in place of masks (as UNO)", {"masks": "noise"}),
    Arm("data", "given responses, their tokens as labels", {}, "given"),
    Arm("data", "given responses, online labels", {"labels": "online"}, "given"),
    Arm("data", "sampled responses, online labels", {"labels": "online"}, "sampled"),
    Arm(
        "method",
        "lora, rank 64",
        {"method": "lora", "learning_rate": 2e-3, "next_token_weight": 10.0, "free_directions": 1.0},
    ),
    Arm("method", "full", _EVERYWHERE),
    Arm("method", "full, the paper's objective and no next-token loss", _PAPER),
    Arm("optimizer", "AdamW", {"optimizer": "adamw", "learning_rate": 2e-3}),
)


@dataclass(frozen=True)
class Result:
    """One arm with one seed."""

    group: str
    name: str
    seed: int
    steps: int
    tokens_per_step: float  # under Exact 0.5
    right: float  # share of right answers under next-token decoding
    same: float  # share of outputs under Exact 0.5 that are identical to the original's


def training_files(folder: Path, kinds: set[str]) -> dict[str, Path]:
    """Files with the same prompts and each of these kinds of responses. The base writes its own responses once; later calls
    reuse them."""
    base = Model.load(checkpoint("base"))
    problems = examples("word-problems", "adapt", PROMPTS)
    made = {"given": folder / "given.jsonl"}
    _write(made["given"], problems, (p.response for p in problems))
    for kind in kinds - {"given"}:
        made[kind] = folder / f"{kind}.jsonl"
        if not made[kind].exists():
            _write(made[kind], problems, _written_by(base, problems, kind == "sampled"))
    return made


def _write(path: Path, problems: list[Example], responses: Iterable[str]) -> None:
    pairs = zip(problems, responses, strict=True)
    write_text(path, "".join(json.dumps({"prompt": p.prompt, "response": r}) + "\n" for p, r in pairs))


def _written_by(base: Model, problems: list[Example], sampled: bool) -> list[str]:
    texts: list[str] = []
    for start in range(0, len(problems), 50):
        part = [base.encode(p.prompt) for p in problems[start : start + 50]]
        ids: list[list[int]] = [[] for _ in part]
        sampling = Sampling(seed=0) if sampled else None
        for chunk in base.decoder.decode(part, max_new_tokens=320, sampling=sampling, first_row=start):
            ids[chunk.row - start] += chunk.token_ids
        texts += [str(base.tokenizer.decode(row, skip_special_tokens=True)) for row in ids]
    return texts


def steps_of_equal_time(
    arms: Sequence[Arm], data: dict[str, Path], most: int, rounds: int, common: dict[str, Any]
) -> dict[str, int]:
    """The number of steps of each arm that take as long as `most` steps of the first arm. It is measured with a few steps of
    all arms, interleaved, taken from all parts of the run."""
    with tempfile.TemporaryDirectory() as folder:
        steppers: dict[str, Stepper] = {}
        for arm in arms:
            where = {
                "model": checkpoint("base"),
                "data": data[arm.responses],
                "output": Path(folder) / "out",
                "steps": most,
            }
            steppers[arm.name] = Stepper(make_config(**common | arm.options | where), Path(folder))
        seconds: dict[str, list[float]] = {arm.name: [] for arm in arms}
        for number in range(rounds + 1):
            for name, stepper in steppers.items():
                spent, _ = stepper.step(number * most // rounds)
                if number:  # the first round warms up
                    seconds[name].append(spent)
    reference = seconds[arms[0].name]
    ratios = {name: ratio_interval(list(zip(reference, own, strict=True))).median for name, own in seconds.items()}
    return {name: round(most * ratio) for name, ratio in ratios.items()}


def run(
    arm: Arm, seed: int, steps: int, data: Path, reference: list[tuple], questions: int, common: dict[str, Any]
) -> Result:
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "adapted"
        options: dict[str, Any] = common | arm.options | {"seed": seed, "steps": steps}
        adapt(checkpoint("base"), data=data, output=output, console=Console(quiet=True), **options)
        model = Model.load(output)
    task = embedded_task("word-problems", questions)
    prompts = [model.encode(q.prompt) for q in task.questions]

    def answers(policy: Any) -> list[tuple]:
        return answer_all(model, prompts, policy, 32, task.max_new_tokens, f"{arm.name}, seed {seed}")

    exact = answers(Exact(0.5))
    plain = answers(NextToken()) if arm.options["method"] != "gated" else exact  # a gate does not change next tokens
    texts = [str(model.tokenizer.decode(list(ids), skip_special_tokens=True)) for ids, _, _ in plain]
    right = sum(task.grader.grade(t, q.answer) is True for t, q in zip(texts, task.questions, strict=True))
    same = sum(ours[0] == theirs[0] for ours, theirs in zip(exact, reference, strict=True))
    return Result(
        arm.group,
        arm.name,
        seed,
        steps,
        tokens_per_step(exact),
        right / questions,
        same / questions,
    )


def table(results: list[Result]) -> str:
    lines = [
        "| changed | arm | steps | Exact 0.5, tokens per step | right answers | outputs of the original |",
        "|---|---|---|---|---|---|",
    ]
    for group, name, mine in _by_arm(results):
        half = [r.tokens_per_step for r in mine]
        spread = f" ({min(half):.2f} to {max(half):.2f}, {len(half)} seeds)" if len(half) > 1 else " (1 seed)"
        lines.append(
            f"| {group} | {name} | {statistics.mean(r.steps for r in mine):.0f} | {statistics.mean(half):.2f}{spread} | "
            f"{100 * statistics.mean(r.right for r in mine):.1f}% | "
            f"{100 * statistics.mean(r.same for r in mine):.0f}% |"
        )
    return "\n".join(lines)


def _by_arm(results: list[Result]) -> list[tuple[str, str, list[Result]]]:
    found = [(a.group, a.name, [r for r in results if (r.group, r.name) == (a.group, a.name)]) for a in ARMS]
    return [(group, name, mine) for group, name, mine in found if mine]


def picture(results: list[Result], path: Path) -> None:
    """One row per arm, with a dot for each seed and a line at their mean. Grey: training lost right answers."""
    arms = _by_arm(results)
    base = statistics.mean(r.right for r in arms[0][2])  # gated: by construction the original's
    figure = Figure(figsize=(8, 0.36 * len(arms) + 1.2), dpi=200, facecolor="white")
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.08)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for y, (_, _, mine) in enumerate(arms):
        values = [r.tokens_per_step for r in mine]
        cost = 100 * (base - statistics.mean(r.right for r in mine))
        color = "#0072B2" if cost < 1 else "#8c959f"
        axes.scatter(values, [y] * len(values), s=26, color=color, zorder=3)
        axes.plot([statistics.mean(values)] * 2, [y - 0.3, y + 0.3], color=color, zorder=2)
        if cost >= 1:
            axes.annotate(f"  {cost:.0f} points lost", (max(values), y), va="center", fontsize=8, color="#656d76")
    axes.axvline(statistics.mean(r.tokens_per_step for r in arms[0][2]), color="#d0d7de", linestyle="--", zorder=1)
    labels = [name if name.startswith(group) else f"{group}: {name}" for group, name, _ in arms]
    axes.set_yticks(range(len(arms)), labels, fontsize=8)
    axes.tick_params(axis="x", labelsize=8)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(arms) - 0.4, -0.6)
    axes.set_xlim(left=1)
    axes.set_xlabel("tokens per step under Exact 0.5", fontsize=9)
    figure.suptitle(
        "One dot per seed, a line at their mean; dashed: the reference; grey: right answers were lost", fontsize=9
    )
    axes.grid(axis="x", color="#e6e8eb")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, format="png")


def _read(kept: Path) -> list[Result]:
    return [Result(**json.loads(line)) for line in kept.read_text().splitlines()] if kept.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=100, help="number of steps of the reference")
    parser.add_argument("--questions", type=int, default=48)
    parser.add_argument(
        "--only",
        nargs="+",
        choices=sorted({a.group for a in ARMS}),
        help="groups of arms to train; the reference is always added",
    )
    parser.add_argument("--dtype", default=COMMON["dtype"], help="use float32 if the CPU is slow in bfloat16")
    parser.add_argument("--show", action="store_true")
    parser.add_argument("--picture", type=Path)
    a = parser.parse_args()
    if not a.show:
        arms = [arm for arm in ARMS if a.only is None or arm.group in {"reference", *a.only}]
        train_all(arms, a.output, a.seeds, a.steps, a.questions, COMMON | {"dtype": a.dtype})
    results = [r for kept in sorted(a.output.glob("seed-*.jsonl")) for r in _read(kept)]
    print(table(results))
    picture(results, a.picture or a.output / "ablations.png")
    facts = provenance(threads=torch.get_num_threads())
    print(json.dumps({"provenance": facts, "results": [asdict(r) for r in results]}))


def train_all(
    arms: Sequence[Arm], output: Path, seeds: list[int], reference_steps: int, questions: int, common: dict[str, Any]
) -> None:
    """Train each of these arms with every seed, except those that already have a result."""
    output.mkdir(parents=True, exist_ok=True)
    data = training_files(output, {arm.responses for arm in arms})
    plan = output / "steps.json"
    steps = json.loads(plan.read_text()) if plan.exists() else {}
    if new := [arm for arm in arms if arm.name not in steps]:  # always timed together with the reference
        beside = [ARMS[0], *(arm for arm in new if arm != ARMS[0])]
        timed = steps_of_equal_time(beside, data, reference_steps, rounds=8, common=common)
        steps = timed | steps
        write_text(plan, json.dumps(steps, indent=1) + "\n")
    base = Model.load(checkpoint("base"))
    task = embedded_task("word-problems", questions)
    reference = answer_all(base, [base.encode(q.prompt) for q in task.questions], NextToken(), 32, 320, "original")
    for seed in seeds:
        kept = output / f"seed-{seed}.jsonl"
        mine = _read(kept)
        for arm in arms:
            if arm.name not in {r.name for r in mine}:
                mine.append(run(arm, seed, steps[arm.name], data[arm.responses], reference, questions, common))
                write_text(kept, "".join(json.dumps(asdict(r)) + "\n" for r in mine))


if __name__ == "__main__":
    main()
