"""Arithmetic word problems of two to six steps with worked answers.

A problem is a walk over one amount: start, then additions, subtractions, multiplications, divisions, products of
groups, and sometimes a comparison with a second person. Every operand and every result has at most three digits.
The worked answer is written in one of several styles and ends with the line "Answer: N". Wordings are drawn with skewed
weights. Frozen: any change needs a new `corpus.GENERATOR_VERSION`.
"""

import random
from dataclasses import dataclass

from .kinds import Kind, Telling
from .words import DAYS, FEMALE_NAMES, MALE_NAMES, MONTHS, zipf

LARGEST = 999
MIN_STEPS, MAX_STEPS = 2, 6
_WEIGHTS = {"add": 5, "sub": 5, "mul": 3, "div": 3, "addprod": 3, "subprod": 3}
_SIGNS = {"add": "+", "sub": "-", "mul": "*", "div": "/"}


@dataclass(frozen=True)
class Problem:
    """A question, its worked answer and the number that the last line of the answer gives."""

    question: str
    worked: str
    answer: int
    kind: str
    steps: int


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _number(rng: random.Random, low: int, high: int) -> int:
    """A number in [low, high], its count of digits drawn first, so that small and large ones both occur."""
    digits = rng.randint(len(str(low)), len(str(high)))
    return rng.randint(max(low, 10 ** (digits - 1)), min(high, 10**digits - 1))


def _operands(rng: random.Random, op: str, value: int) -> dict[str, int] | None:
    """Numbers for one operation on `value`, or None where none keeps all results within 2..LARGEST."""
    if op == "add" and value <= LARGEST - 2:
        return {"n": _number(rng, 2, LARGEST - value)}
    if op == "sub" and value >= 4:
        return {"n": _number(rng, 2, value - 2)}
    if op == "mul" and value * 2 <= LARGEST:
        return {"n": rng.randint(2, min(9, LARGEST // value))}
    if op == "div":
        divisors = [d for d in range(2, 10) if value % d == 0 and value // d >= 2]
        return {"n": rng.choice(divisors)} if divisors else None
    room = LARGEST - value if op == "addprod" else value - 2
    if op.endswith("prod") and room >= 4:
        a = rng.randint(2, min(12, room // 2))
        return {"a": a, "b": _number(rng, 2, min(99, room // a))}
    return None


class _Voice:
    """How one worked answer speaks: fixed for the whole answer, as a person would."""

    def __init__(self, rng: random.Random, kind: Kind, name: str, pronoun: str, things: str) -> None:
        self.rng, self.kind, self.name, self.pronoun, self.things = rng, kind, name, pronoun, things
        self.form = zipf(rng, ("after", "because", "short", "order"))
        self.told = 0

    def _state(self, amount: str) -> str:
        return self.kind.state.format(r=amount, things=self.things)

    def opening(self, value: int) -> str:
        state = self._state(str(value))
        options = (
            f"At first {self.name} {state}.",
            f"{_capital(self.name)} {state} at the start.",
            f"To begin with, {self.name} {state}.",
        )
        return zipf(self.rng, options)

    def product(self, a: int, b: int) -> str:
        options = (
            f"{a} times {b} is {a} * {b} = {a * b}.",
            f"That is {a} * {b} = {a * b} {self.things}.",
            f"First find {a} * {b} = {a * b}.",
        )
        return zipf(self.rng, options)

    def step(self, sign: str, left: int, right: int, result: int, present: str, gerund: str) -> str:
        self.told += 1
        equation = f"{left} {sign} {right} = {result}"
        state = self._state(equation)
        if self.form == "after":
            return f"After {gerund}, {self.pronoun} {state}."
        if self.form == "because":
            return f"{_capital(self.pronoun)} {present}, so {self.pronoun} {state}."
        if self.form == "short":
            return f"{equation} {self.things}."
        start = "First" if self.told == 1 else zipf(self.rng, ("Then", "Next", "Now"))
        return f"{start} {self.pronoun} {present}: {equation}."

    def closing(self, result: int) -> str:
        state = self._state(str(result))
        options = (
            f"So {self.name} {state}.",
            f"In the end {self.name} {state}.",
            f"This means that {self.name} {state}.",
        )
        return zipf(self.rng, options)


def make_problem(rng: random.Random, kinds: tuple[Kind, ...]) -> Problem:
    """Draw one problem. All randomness comes from `rng`."""
    kind = rng.choice(kinds)
    steps = rng.randint(MIN_STEPS, MAX_STEPS)
    while True:
        problem = _attempt(rng, kind, steps)
        if problem is not None:
            return problem


def _attempt(rng: random.Random, kind: Kind, steps: int) -> Problem | None:
    female = rng.random() < 0.5
    person = rng.choice(FEMALE_NAMES if female else MALE_NAMES)
    friend = rng.choice([n for n in FEMALE_NAMES + MALE_NAMES if n != person])
    name = kind.subject or person
    pronoun = "it" if kind.subject else ("she" if female else "he")
    things = rng.choice(kind.things)
    common = {"name": name, "Name": _capital(name), "things": things, "friend": friend, "month": rng.choice(MONTHS)}
    value = _number(rng, 2, LARGEST)
    voice = _Voice(rng, kind, name, pronoun, things)
    told = [zipf(rng, kind.starts).format(v=value, **common)]
    worked = [voice.opening(value)] if rng.random() < 0.7 else []
    compare = kind.compare is not None and steps >= 3 and rng.random() < 0.25
    left = steps - 2 if compare else steps
    while left:
        choices = [op for op in kind.tellings if left >= (2 if op.endswith("prod") else 1)]
        op = rng.choices(choices, weights=[_WEIGHTS[o] for o in choices])[0]
        numbers = _operands(rng, op, value)
        if numbers is None:  # addition fits unless the amount is at the very top: then start again
            if op == "add":
                return None
            continue
        present, gerund = _tell(zipf(rng, kind.tellings[op]), common, numbers)
        told.append(_sentence(rng, name, pronoun, present))
        base = op.removesuffix("prod")
        right = numbers.get("n", 0) or numbers["a"] * numbers["b"]
        if op.endswith("prod"):
            worked.append(voice.product(numbers["a"], numbers["b"]))
        result = _apply(base, value, right)
        worked.append(voice.step(_SIGNS[base], value, right, result, present, gerund))
        value = result
        left -= 2 if op.endswith("prod") else 1
    question = zipf(rng, kind.questions).format(**common)
    if compare:
        compared = _compare(rng, kind, value, name, friend, things)
        if compared is None:
            return None
        sentence, question, lines, value = compared
        told.append(sentence)
        worked += lines
    else:
        worked.append(voice.closing(value))
    if kind.extra and rng.random() < 0.15:
        told.insert(rng.randint(1, len(told)), rng.choice(kind.extra).format(**common))
    return Problem(" ".join([*told, question]), " ".join(worked) + f"\nAnswer: {value}", value, kind.name, steps)


def _apply(op: str, value: int, right: int) -> int:
    return {"add": value + right, "sub": value - right, "mul": value * right, "div": value // right}[op]


def _tell(telling: Telling, common: dict[str, str], numbers: dict[str, int]) -> tuple[str, str]:
    present, gerund = telling
    return present.format(**common, **numbers), gerund.format(**common, **numbers)


def _sentence(rng: random.Random, name: str, pronoun: str, present: str) -> str:
    who = zipf(rng, (pronoun, name))
    lead = zipf(rng, ("", "Then ", "Later ", f"On {rng.choice(DAYS)} ", "After that ", "The next day "))
    return f"{lead}{who} {present}." if lead else f"{_capital(who)} {present}."


def _compare(
    rng: random.Random, kind: Kind, value: int, name: str, friend: str, things: str
) -> tuple[str, str, list[str], int] | None:
    """Two last steps: the friend's amount from the first person's, then both together."""
    options: list[tuple[str, str, int]] = []
    if value >= 6:
        n = _number(rng, 2, value - 2)
        options.append((f"{n} fewer {things} than {name}", f"{value} - {n}", value - n))
    if 2 * value + 2 <= LARGEST:
        n = _number(rng, 2, LARGEST - 2 * value)
        options.append((f"{n} more {things} than {name}", f"{value} + {n}", value + n))
    if 3 * value <= LARGEST:
        n = rng.randint(2, min(9, LARGEST // value - 1))
        options.append((f"{n} times as many {things} as {name}", f"{value} * {n}", value * n))
    options = [o for o in options if value + o[2] <= LARGEST]
    if not options:
        return None
    phrase, expression, other = rng.choice(options)
    total = value + other
    lines = [
        zipf(
            rng, (f"{friend} has {expression} = {other} {things}.", f"For {friend} that gives {expression} = {other}.")
        ),
        zipf(
            rng,
            (
                f"Together they have {value} + {other} = {total} {things}.",
                f"In all that makes {value} + {other} = {total}.",
            ),
        ),
    ]
    question = zipf(rng, (f"How many {things} do they have together?", f"How many {things} is that in all?"))
    return f"{friend} {kind.compare} {phrase}.", question, lines, total


def make_sums(rng: random.Random, number: int = 20) -> tuple[str, str]:
    """(prompt, lines "a + b = c"): practice in nothing but arithmetic, with the operands that problems have."""
    lines = []
    while len(lines) < number:
        value = _number(rng, 2, LARGEST)
        op = rng.choice(("add", "sub", "mul", "div"))
        if rng.random() < 0.2:  # the product of a group count and a group size
            a = rng.randint(2, 12)
            lines.append(f"{a} * {(b := _number(rng, 2, min(99, LARGEST // a)))} = {a * b}")
            continue
        numbers = _operands(rng, op, value)
        if numbers is not None:
            lines.append(f"{value} {_SIGNS[op]} {numbers['n']} = {_apply(op, value, numbers['n'])}")
    return f"Show {number} sums.", "\n".join(lines)
