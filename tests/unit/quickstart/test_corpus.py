"""The frozen generators: correct arithmetic, the promised ranges, and text that never changes within a version."""

import hashlib
import itertools
import re

import pytest

from multitoken.quickstart import wordings
from multitoken.quickstart.corpus import GENERATOR_VERSION, MIXTURE, TASKS, examples, make_example, mixed
from multitoken.quickstart.kinds import HELD_OUT_KINDS, TRAINED_KINDS
from multitoken.quickstart.problems import LARGEST, make_problem
from multitoken.quickstart.toys import spelled
from multitoken.quickstart.words import zipf

FROZEN = "a17529157bee6bc7e1672228f7a41235a2587e13eec54a9b2e9245ec788c8aa7"
SPELLED = {spelled(number): number for number in range(1000)}
EQUATION = re.compile(r"(\d+) ([-+*/]) (\d+) = (\d+)")


def test_every_worked_answer_is_right_and_within_three_digits() -> None:
    """A wrong worked answer would limit every accuracy measured with it."""
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
    """The domain must not become easier."""
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
    """Held-out kinds measure what happens outside the training text."""
    held_out = {thing for kind in HELD_OUT_KINDS for thing in kind.things}
    for example, _ in zip(mixed("train"), range(3000), strict=False):
        assert not held_out & set(re.findall(r"\w+", example.prompt)), example.prompt
    assert not {k.name for k in HELD_OUT_KINDS} & {k.name for k in TRAINED_KINDS}


def test_splits_and_indices_give_different_and_repeatable_text() -> None:
    """A test set that overlaps with the training stream measures memorisation."""
    for task in TASKS:
        assert examples(task, "test", 5) == examples(task, "test", 5)
        assert examples(task, "test", 3, start=2) == examples(task, "test", 5)[2:]
    train = {e.prompt for e, _ in zip(mixed("train"), range(5000), strict=False) if e.task == "word-problems"}
    assert not train & {e.prompt for e in examples("word-problems", "test", 1500)}
    assert set(MIXTURE) - set(TASKS) == {"sums"}


@pytest.mark.parametrize("task", ["counting", "held-out-counting"])
def test_counting_answers_what_the_prompt_asks(task: str) -> None:
    """The grader of these tasks compares the whole text."""
    digits = 0
    for example in examples(task, "test", 600):
        numbers = [number_of(n) for n in re.split(r", |\n|(?<=\d) ", example.answer)]
        differences = {b - a for a, b in itertools.pairwise(numbers)}
        assert len(differences) == 1
        named = [int(n) for n in re.findall(r"\d+", example.prompt)]
        if len(named) >= 2 and not re.search(r"\b(one|two|three|four|five|ten|twenty|fifty|hundred)", example.prompt):
            digits += 1
            step, ends = abs(differences.pop()), {numbers[0], numbers[-1]}
            assert set(named) | {1, step} == ends | {1, step}
    assert digits > 300


def number_of(text: str) -> int:
    """The number that is written in digits or in words."""
    return int(text) if text.isdigit() else SPELLED[text]


@pytest.mark.parametrize("task", ["repeating", "held-out-repeating"])
def test_repeating_answers_what_the_prompt_asks(task: str) -> None:
    """A phrase of the prompt, in numbered lines, as often as the prompt says."""
    for example in examples(task, "test", 400):
        lines = example.answer.split("\n")
        phrases = {line.removeprefix(f"{i}. ") for i, line in enumerate(lines, 1)}
        assert len(phrases) == 1 and phrases.pop() in example.prompt
        times = {1: "once", 2: "twice"}.get(len(lines), f"{spelled(len(lines))} times")
        assert f"{len(lines)} times" in example.prompt.lower() or times in example.prompt.lower()


def test_held_out_wordings_never_occur_in_training() -> None:
    """Held-out wordings show whether a model understands the request or has memorised its sentence."""
    held_out = [*wordings.HELD_OUT_UP, *wordings.HELD_OUT_DOWN, *wordings.HELD_OUT_TO, *wordings.HELD_OUT_REPEAT]
    trained = {*wordings.UP, *wordings.DOWN, *wordings.TO, *wordings.REPEAT}
    assert not trained & set(held_out) and not set(wordings.FRAMES) & set(wordings.HELD_OUT_FRAMES)
    starts = {re.split(r"[{,:]", wording)[0] for wording in held_out} - {
        re.split(r"[{,:]", wording)[0] for wording in trained
    }
    assert len(starts) > 12
    for example, _ in zip(mixed("train"), range(8000), strict=False):
        if example.task in ("counting", "repeating"):
            assert not any(start in example.prompt.lower() for start in starts), example.prompt


def test_there_are_hundreds_of_wordings() -> None:
    """With numbers ignored, more than 600 of 1,000 prompts have a wording of their own."""
    found = {re.sub(r"\d+", "0", e.prompt) for e in examples("counting", "test", 1000)}
    assert len(found) > 600


def test_numbers_are_spelled() -> None:
    """Compared with a list made by hand."""
    for number, text in {
        0: "zero",
        7: "seven",
        20: "twenty",
        42: "forty-two",
        100: "one hundred",
        999: "nine hundred ninety-nine",
    }.items():
        assert spelled(number) == text
    assert len(SPELLED) == 1000
    with pytest.raises(ValueError, match="1000"):
        spelled(1000)


def test_version_2_is_frozen() -> None:
    """A change of any word list, weight or range must come with a new GENERATOR_VERSION."""
    text = "".join(repr(e) for task in TASKS for e in examples(task, "frozen", 50))
    assert GENERATOR_VERSION == 2
    assert hashlib.sha256(text.encode()).hexdigest() == FROZEN


def test_zipf_prefers_the_first() -> None:
    """Because some wordings are more frequent than others, greedy text is predictable, as real text is."""
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
