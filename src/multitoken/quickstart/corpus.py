"""All data of the embedded models: one seeded stream of examples per split.

Example `i` of a split depends only on (GENERATOR_VERSION, split, i), so any part of the stream can be generated again.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

from .kinds import HELD_OUT_KINDS, TRAINED_KINDS
from .letters import make_letter
from .problems import make_problem, make_sums
from .toys import make_counting, make_repeating

GENERATOR_VERSION = 2
LANGUAGE = {"word-problems": 0.60, "letters": 0.10, "counting": 0.18, "repeating": 0.12}
MIXTURE = {"word-problems": 0.25, "letters": 0.05, "counting": 0.32, "repeating": 0.28, "sums": 0.10}
HELD_OUT = ("held-out-problems", "held-out-counting", "held-out-repeating")
TASKS = (*LANGUAGE, *HELD_OUT)


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
    if task == "short-counting":
        prompt, response = make_counting(rng, 9)
        return Example(task, prompt, response, response)
    if task == "short-repeating":
        prompt, response = make_repeating(rng, 5)
        return Example(task, prompt, response, response)
    if task in ("counting", "held-out-counting"):
        longest = 400 if split == "train" and index % 50 == 0 else 60
        prompt, response = make_counting(rng, longest, held_out=task != "counting")
        return Example(task, prompt, response, response)
    if task in ("repeating", "held-out-repeating"):
        prompt, response = make_repeating(rng, held_out=task != "repeating")
        return Example(task, prompt, response, response)
    raise KeyError(task)


def examples(task: str, split: str, number: int, start: int = 0) -> list[Example]:
    """Examples `start .. start + number - 1` of a task."""
    return [make_example(task, split, i) for i in range(start, start + number)]


def mixed(split: str, start: int = 0, mixture: dict[str, float] = MIXTURE) -> Iterator[Example]:
    """An endless training mixture. What is held out (kinds of problem, wordings of the toys) never occurs in it."""
    for i in count(start):
        rng = random.Random(f"multitoken-{GENERATOR_VERSION}:{split}:mixture:{i}")
        task = rng.choices(list(mixture), weights=list(mixture.values()))[0]
        yield make_example(task, split, i)
