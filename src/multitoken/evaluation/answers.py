"""Every model and policy answers the same questions under one clock, and the answers are kept.

The questions are divided into parts. On each part all combinations of model and policy run one after the other, so a
machine that slows down slows all of them. The order rotates by one from part to part, so that none always runs on a cache
left by the same other one. With one question at a time, a part is one question. With batches, a part is several times the
batch size, because at the end of a part the last answers run alone. Several processes share the parts.
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
"""`progress(done, total)`, called after each counted part, in answers. What other processes have done is estimated from
this one."""

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
    """Every question's answer by every run, in the order of the questions. questions: the indices of those that are asked,
    all if not given.

    Answers that the `journal` already holds are not computed again, and new ones are written there at once. Every process
    gets all answers.
    """
    processes = Processes.here()
    known = journal.outcomes() if journal is not None else {}
    asked = range(len(task.questions)) if questions is None else questions
    share = max(1, -(-len(asked) // processes.number))  # so that every process has something to do
    size = min(batch_size * _PART, share) if batch_size > 1 else 1
    parts = [asked[at : at + size] for at in range(0, len(asked), size)]
    found: dict[tuple[Combination, int], Outcome] = {}
    total, done = len(asked) * len(runs), 0
    # Not counted: the first answer includes allocating memory and loading kernels. A model refuses a policy here.
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
    # Answers of a part end at different times, so the part's time is divided among them by tokens.
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
    """Generations with all masks, regardless of their cost here: tokens per step must be the same on every machine."""
    options: dict[str, Any] = {"policy": run.policy, "max_new_tokens": max_new_tokens, "adaptive": False}
    prompts = [task.questions[i].prompt for i in part]
    options |= generate_options(run.what.sampling, list(part))
    if len(prompts) == 1:
        return [run.model.generate(prompts[0], **options)]
    return run.model.generate(prompts, batch_size=batch_size, **options)
