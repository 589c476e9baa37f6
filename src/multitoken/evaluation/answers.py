"""Every model and policy answers the same questions, with one clock, and what they said is kept.

For each part of the questions all combinations run in turn, so a machine that slows down slows all of them. The order turns by one place
a part, so none always runs on a cache that the same other one left behind. With one question at a time a part is one question; side by
side it is several times as many as run at a time, for at the end of a part the last answers run alone. Several processes share out the
parts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from multitoken.decoding.policies import Policy
from multitoken.processes import Processes

from .graders import grade
from .journal import Journal
from .protocols import ModelLike
from .rows import Combination, Outcome
from .sampled import generate_options
from .tasks import Task

Progress = Callable[[int, int], None]
"""`progress(done, total)`, called after each counted part, in answers; those of other processes by what this one has done."""

_WARM_UP_TOKENS = 16
_PART = 4  # times the batch size


@dataclass(frozen=True)
class Run:
    """A combination and the model and policy to run it with."""

    what: Combination
    model: ModelLike
    policy: Policy


def answer_all(
    runs: Sequence[Run],
    task: Task,
    *,
    questions: range | None = None,
    batch_size: int = 1,
    journal: Journal | None = None,
    progress: Progress | None = None,
) -> dict[Combination, list[Outcome]]:
    """Every question's answer by every run, in the questions' order. questions: the places of those that are asked, all if not given.

    What the `journal` holds already is not answered again, and what is answered is written there at once. Every process gets all
    answers.
    """
    processes = Processes.here()
    known = journal.outcomes() if journal is not None else {}
    asked = range(len(task.questions)) if questions is None else questions
    share = max(1, -(-len(asked) // processes.number))  # so that none has nothing to do
    size = min(batch_size * _PART, share) if batch_size > 1 else 1
    parts = [asked[at : at + size] for at in range(0, len(asked), size)]
    found: dict[tuple[Combination, int], Outcome] = {}
    total, done = len(asked) * len(runs), 0
    # Not counted: the first answer pays for allocations and kernels. A policy that a model refuses is refused here.
    for run in runs:
        if any((run.what.key, i) not in known for i in asked):
            _decode(run, task, asked[:1], min(task.max_new_tokens, _WARM_UP_TOKENS), 1)
    for number, part in processes.mine(list(enumerate(parts))):
        turn = number % len(runs)
        for run in [*runs[turn:], *runs[:turn]]:
            outcomes = [known[run.what.key, i] for i in part if (run.what.key, i) in known]
            if len(outcomes) < len(part):
                outcomes = _outcomes(run, task, part, batch_size)
                if journal is not None:
                    journal.add(run.what.key, part, outcomes)
            found |= {(run.what, i): outcome for i, outcome in zip(part, outcomes, strict=True)}
            done += len(part) * processes.number
            if progress is not None:
                progress(min(done, total), total)
    for theirs in processes.gather(found):
        found |= theirs
    if journal is not None:
        journal.complete({(what.key, i): outcome for (what, i), outcome in found.items()})
    return {run.what: [found[run.what, i] for i in asked] for run in runs}


def _outcomes(run: Run, task: Task, part: range, batch_size: int) -> list[Outcome]:
    generations = _decode(run, task, part, task.max_new_tokens, batch_size)
    # Answers of a part end at different times; what the part took is shared out by tokens.
    seconds = max(generation.seconds for generation in generations)
    tokens = sum(len(generation.token_ids) for generation in generations)
    return [
        Outcome.of(
            generation,
            grade(task.grader, generation.text, task.questions[i].answer, f"question {i + 1} of {task.name}"),
            seconds=seconds * len(generation.token_ids) / tokens,
            batch=part.start,  # not its number: that changes with the number of processes
        )
        for i, generation in zip(part, generations, strict=True)
    ]


def _decode(run: Run, task: Task, part: range, max_new_tokens: int, batch_size: int) -> list[Any]:
    """Generations. All masks, whatever they cost here: tokens per step are to be the same on every machine."""
    options: dict[str, Any] = {"policy": run.policy, "max_new_tokens": max_new_tokens, "adaptive": False}
    prompts = [task.questions[i].prompt for i in part]
    options |= generate_options(run.what.sampling, list(part))
    if len(prompts) == 1:
        return [run.model.generate(prompts[0], **options)]
    return run.model.generate(prompts, batch_size=batch_size, **options)
