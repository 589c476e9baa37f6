"""Counting and repeating: the easiest text there is, where a multi-token model should fly.

Frozen with `corpus.GENERATOR_VERSION`.
"""

import random

from .words import PHRASES


def make_counting(rng: random.Random, longest: int = 60) -> tuple[str, str]:
    """(prompt, numbers): up or down, by 1, 2, 5 or 10, at most `longest` numbers below 1000."""
    step = rng.choices((1, 2, 5, 10), weights=(6, 2, 2, 1))[0]
    count = rng.randint(8, min(longest, 990 // step))
    first = rng.randint(0, 999 - step * (count - 1))
    numbers = [first + step * i for i in range(count)]
    down = rng.random() < 0.3
    if down:
        numbers.reverse()
    by = "" if step == 1 else f" by {step}"
    verb = "Count down" if down else "Count"
    return f"{verb} from {numbers[0]} to {numbers[-1]}{by}.", ", ".join(map(str, numbers))


def make_repeating(rng: random.Random) -> tuple[str, str]:
    """(prompt, the phrase so many times)."""
    phrase = " and ".join(rng.sample(PHRASES, 2)) if rng.random() < 0.3 else rng.choice(PHRASES)
    times = rng.randint(2, 12)
    return f"Say '{phrase}' {times} times.", ", ".join([phrase] * times)
