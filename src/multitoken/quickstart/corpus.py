"""The embedded models' whole world: one seeded stream of examples per split.

Example `i` of a split depends on (GENERATOR_VERSION, split, i) alone, so any part of the stream can be made again.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

from .kinds import HELD_OUT_KINDS, TRAINED_KINDS
from .letters import make_letter
from .problems import make_problem, make_sums
from .toys import make_counting, make_repeating

GENERATOR_VERSION = 1
LANGUAGE = {"word-problems": 0.78, "letters": 0.10, "counting": 0.07, "repeating": 0.05}
MIXTURE = {"word-problems": 0.60, "letters": 0.08, "counting": 0.04, "repeating": 0.03, "sums": 0.25}
TASKS = (*LANGUAGE, "held-out-problems")


@dataclass(frozen=True)
class Example:
    """A prompt and a good response. `answer` is what a grader looks for, "" where every response is fine."""

    task: str
    prompt: str
    response: str
    answer: str


def make_example(task: str, split: str, index: int) -> Example:
    """Example `index` of a task. Raises `KeyError` for an unknown task."""
    rng = random.Random(f"multitoken-{GENERATOR_VERSION}:{split}:{task}:{index}")
    if task in ("word-problems", "held-out-problems"):
        problem = make_problem(rng, TRAINED_KINDS if task == "word-problems" else HELD_OUT_KINDS)
        return Example(task, problem.question, problem.worked, str(problem.answer))
    if task == "letters":
        return Example(task, *make_letter(rng), "")
    if task == "sums":
        return Example(task, *make_sums(rng), "")
    if task == "counting":
        prompt, response = make_counting(rng, longest=400 if split == "train" and index % 20 == 0 else 60)
        return Example(task, prompt, response, response)
    if task == "repeating":
        prompt, response = make_repeating(rng)
        return Example(task, prompt, response, response)
    raise KeyError(task)


def examples(task: str, split: str, number: int, start: int = 0) -> list[Example]:
    """Examples `start .. start + number - 1` of a task."""
    return [make_example(task, split, i) for i in range(start, start + number)]


def mixed(split: str, start: int = 0, mixture: dict[str, float] = MIXTURE) -> Iterator[Example]:
    """An endless training mixture. Word problems of the held-out kinds never occur in it."""
    for i in count(start):
        rng = random.Random(f"multitoken-{GENERATOR_VERSION}:{split}:mixture:{i}")
        task = rng.choices(list(mixture), weights=list(mixture.values()))[0]
        yield make_example(task, split, i)
