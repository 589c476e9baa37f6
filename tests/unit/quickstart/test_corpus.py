"""The frozen generators: right arithmetic, the promised ranges, and text that never changes within a version."""

import hashlib
import itertools
import re

import pytest

from multitoken.quickstart.corpus import GENERATOR_VERSION, MIXTURE, TASKS, examples, make_example, mixed
from multitoken.quickstart.kinds import HELD_OUT_KINDS, TRAINED_KINDS
from multitoken.quickstart.problems import LARGEST, make_problem
from multitoken.quickstart.words import zipf

FROZEN = "0bfab6fd34a1927a95f46878a9fa8c2c9748c68fce959640d039964f0116a3ff"
EQUATION = re.compile(r"(\d+) ([-+*/]) (\d+) = (\d+)")


def test_every_worked_answer_is_right_and_within_three_digits() -> None:
    """A wrong teacher text would cap every accuracy measured with it."""
    for task in ("word-problems", "held-out-problems"):
        for example in examples(task, "test", 1500):
            equations = EQUATION.findall(example.response)
            for a, sign, b, result in equations:
                left, right = int(a), int(b)
                value = {"+": left + right, "-": left - right, "*": left * right, "/": left / right}[sign]
                assert value == int(result)
                assert 0 < max(left, right, int(result)) <= LARGEST
            assert equations[-1][3] == example.answer
            assert example.response.endswith(f"\nAnswer: {example.answer}")


def test_problems_have_two_to_six_steps_and_every_operation() -> None:
    """The domain must not drift to something easier."""
    import random

    rng = random.Random(0)
    problems = [make_problem(rng, TRAINED_KINDS) for _ in range(3000)]
    for problem in problems:
        assert len(EQUATION.findall(problem.worked)) == problem.steps
    assert {p.steps for p in problems} == {2, 3, 4, 5, 6}
    assert {p.kind for p in problems} == {k.name for k in TRAINED_KINDS}
    signs = "".join(sign for p in problems for _, sign, _, _ in EQUATION.findall(p.worked))
    assert all(signs.count(sign) > 0.08 * len(signs) for sign in "+-*/")


def test_held_out_kinds_never_occur_in_training() -> None:
    """They measure what happens outside the training text."""
    held_out = {thing for kind in HELD_OUT_KINDS for thing in kind.things}
    for example, _ in zip(mixed("train"), range(3000), strict=False):
        assert not held_out & set(re.findall(r"\w+", example.prompt)), example.prompt
    assert not {k.name for k in HELD_OUT_KINDS} & {k.name for k in TRAINED_KINDS}


def test_splits_and_indices_give_different_and_repeatable_text() -> None:
    """A test set that overlaps the training stream measures memory."""
    for task in TASKS:
        assert examples(task, "test", 5) == examples(task, "test", 5)
        assert examples(task, "test", 3, start=2) == examples(task, "test", 5)[2:]
    train = {e.prompt for e, _ in zip(mixed("train"), range(5000), strict=False) if e.task == "word-problems"}
    assert not train & {e.prompt for e in examples("word-problems", "test", 1500)}
    assert set(MIXTURE) - set(TASKS) == {"sums"}


def test_counting_and_repeating_say_what_the_prompt_asks() -> None:
    """Their grader compares the whole text."""
    for example in examples("counting", "test", 200):
        numbers = [int(n) for n in example.answer.split(", ")]
        first, last = map(int, re.findall(r"\d+", example.prompt)[:2])
        assert (numbers[0], numbers[-1]) == (first, last)
        assert len({b - a for a, b in itertools.pairwise(numbers)}) == 1
    for example in examples("repeating", "test", 200):
        phrase, times = re.fullmatch(r"Say '(.+)' (\d+) times\.", example.prompt).groups()
        assert example.answer == ", ".join([phrase] * int(times))


def test_version_1_is_frozen() -> None:
    """A change of any word list, weight or range must come with a new GENERATOR_VERSION."""
    text = "".join(repr(e) for task in TASKS for e in examples(task, "frozen", 50))
    assert GENERATOR_VERSION == 1
    assert hashlib.sha256(text.encode()).hexdigest() == FROZEN


def test_zipf_prefers_the_first() -> None:
    """Skewed wordings are what make greedy text predictable, as real text is."""
    import random

    rng = random.Random(1)
    drawn = [zipf(rng, ("a", "b", "c")) for _ in range(3000)]
    assert drawn.count("a") > drawn.count("b") > drawn.count("c") > 300


def test_unknown_tasks_are_refused() -> None:
    """A typo must not fall back to some default task."""
    from multitoken.errors import UsageError
    from multitoken.quickstart.embedded import embedded_task

    with pytest.raises(UsageError, match="did you mean 'counting'"):
        embedded_task("countin", 5)
    with pytest.raises(KeyError):
        make_example("poems", "test", 0)
