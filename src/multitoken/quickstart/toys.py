"""Counting and repeating, asked for in people's own words: the easiest text, where a multi-token model should be
fastest.

Frozen: any change needs a new `corpus.GENERATOR_VERSION`.
"""

import random
from collections.abc import Sequence

from . import wordings as w
from .kinds import TRAINED_KINDS
from .words import FEMALE_NAMES, MALE_NAMES, PHRASES, zipf

_ONES = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen",
    "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
_TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_TIMES = {1: "once", 2: "twice"}
_ADJECTIVES = (
    "red", "blue", "green", "yellow", "black", "white", "big", "small", "old", "new", "happy", "cold", "sweet", "fast",
)  # fmt: skip
_VERBS = (
    "run", "sing", "jump", "sleep", "dance", "wait", "look", "stop", "go home", "come back", "try again", "thank you",
)  # fmt: skip
_THINGS = tuple(sorted({thing for kind in TRAINED_KINDS for thing in kind.things}))
_ONSETS = (
    "b", "bl", "br", "c", "ch", "cr", "d", "dr", "f", "fl", "g", "gr", "h", "j", "k", "l", "m", "n", "p", "pl", "pr", "qu",
    "r", "s", "sh", "sp", "st", "str", "t", "th", "tr", "v", "w", "y", "z", "",
)  # fmt: skip
_VOWELS = ("a", "e", "i", "o", "u", "ai", "ea", "ee", "oa", "oo", "ou", "y")
_CODAS = (
    "b", "ck", "d", "ff", "g", "l", "ll", "m", "n", "nd", "ng", "nt", "p", "r", "rd", "rt", "s", "ss", "st", "t", "tch", "x",
    "le", "er",
)  # fmt: skip
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
LONGEST_SPELLED = 25


def spelled(number: int) -> str:
    """A number from 0 to 999 in words: 42 is "forty-two", 305 "three hundred five"."""
    if not 0 <= number <= 999:
        raise ValueError(f"{number} has no spelling here; expected 0 to 999")
    hundreds, rest = divmod(number, 100)
    low = _ONES[rest] if rest < 20 else _TENS[rest // 10] + (f"-{_ONES[rest % 10]}" if rest % 10 else "")
    if not hundreds:
        return low
    return f"{_ONES[hundreds]} hundred" + (f" {low}" if rest else "")


def make_counting(rng: random.Random, longest: int = 60, *, held_out: bool = False) -> tuple[str, str]:
    """(prompt, numbers): up or down by 1 to 100, at most `longest` numbers below 1000, in digits unless words are asked for.
    held_out: in wordings that training never shows."""
    in_words = rng.random() < 0.05
    step = (
        1 if in_words else rng.choices((1, 2, 3, 4, 5, 10, 20, 25, 50, 100), weights=(14, 4, 2, 1, 4, 4, 1, 1, 1, 1))[0]
    )
    most = min(longest, 990 // step, LONGEST_SPELLED if in_words else 1000)
    most = min(most, 20) if rng.random() < 0.5 else most
    count = rng.randint(2, most)
    largest = 99 if in_words or rng.random() < 0.4 else 999
    largest = max(largest, step * (count - 1))
    first = rng.randint(0, largest - step * (count - 1))
    if rng.random() < 0.4:  # people like round and small numbers
        first = min(rng.choice((0, 1, 1, 2, 5, step, 10, 20, 50, 100)), first)
    numbers = [first + step * i for i in range(count)]
    down = rng.random() < 0.3
    if down:
        numbers.reverse()
    one_to = not down and step == 1 and first == 1 and rng.random() < 0.5
    if one_to:
        request = rng.choice(w.HELD_OUT_TO if held_out else w.TO)
    elif down:
        request = rng.choice(w.HELD_OUT_DOWN) if held_out else _skewed(rng, w.DOWN)
    else:
        request = rng.choice(w.HELD_OUT_UP) if held_out else _skewed(rng, w.UP)
    if step > 1:
        request += rng.choice(w.HELD_OUT_BY if held_out else w.BY_DOWN if down else w.BY)
    elif not one_to and rng.random() < 0.1:
        request += rng.choice((" by {s}", " in steps of {s}", ", {s} at a time"))
    between = rng.choices((", ", "\n", " "), weights=(20, 2, 0 if in_words else 1))[0]  # number words contain spaces
    request += rng.choice(w.IN_WORDS) if in_words else ""
    request += rng.choice(w.STYLES[between])
    word = spelled if max(numbers) < 100 and rng.random() < 0.15 else str
    small = spelled if rng.random() < 0.4 else str
    request = request.format(a=word(numbers[0]), b=word(numbers[-1]), s=small(step))
    request = request.replace("sixs", "sixes").replace("ones at", "one at")
    return _framed(rng, request, held_out), between.join((spelled if in_words else str)(n) for n in numbers)


def make_repeating(rng: random.Random, longest: int = 20, *, held_out: bool = False) -> tuple[str, str]:
    """(prompt, the phrase so many times, a numbered line each). held_out: in wordings that training never shows."""
    phrase = _phrase(rng, practice=longest < 20)
    times = rng.randint(2, min(12, longest)) if rng.random() < 0.9 else rng.randint(1, longest)
    how_often = _TIMES.get(times, f"{spelled(times)} times") if rng.random() < 0.35 else f"{times} times"
    if times == 1:
        how_often = "once"
    request = rng.choice(w.HELD_OUT_REPEAT) if held_out else _skewed(rng, w.REPEAT)
    opening, closing = rng.choice(w.QUOTES)
    framed = _framed(rng, request.replace("{n}", how_often), held_out)
    if rng.random() < 0.1:
        framed = framed.rstrip(".?! ") + rng.choice((", one per line.", ", each on its own line."))
    lines = [f"{i}. {phrase}" for i in range(1, times + 1)]
    return framed.replace("{p}", f"{opening}{phrase}{closing}"), "\n".join(lines)


def _phrase(rng: random.Random, practice: bool) -> str:
    """Something to repeat: a set phrase, a few words together, words that do not exist, or letters.

    practice: mostly words that do not exist. Only with what it never saw does a model learn to copy instead of to recall.
    """
    kind = rng.random() * (1.0 if practice else 0.6)
    if kind < 0.15:
        phrase = rng.choice(PHRASES)
        phrase = f"{phrase} and {rng.choice(PHRASES)}" if rng.random() < 0.25 else phrase
    elif kind < 0.2:
        phrase = f"{rng.choice(_ADJECTIVES)} {rng.choice(_THINGS).removesuffix('s')}"
    elif kind < 0.95:
        pools: Sequence[Sequence[str]] = (_ADJECTIVES, _THINGS, _VERBS, FEMALE_NAMES + MALE_NAMES, PHRASES)
        number = rng.choices((1, 2, 3, 4), weights=(4, 5, 3, 1))[0]
        invented = 0.0 if kind < 0.5 else 0.4 if kind < 0.75 else 1.0
        phrase = " ".join(
            _invented(rng) if rng.random() < invented else rng.choice(rng.choice(pools)) for _ in range(number)
        )
    else:
        words = ["".join(rng.choice(_LETTERS) for _ in range(rng.randint(2, 6))) for _ in range(rng.randint(1, 2))]
        phrase = " ".join(words)
    return phrase.capitalize() if rng.random() < 0.15 else phrase


def _invented(rng: random.Random) -> str:
    """A word of one to three syllables that need not exist."""
    syllables = range(rng.choices((1, 2, 3), weights=(3, 5, 2))[0])
    return "".join(
        rng.choice(_ONSETS) + rng.choice(_VOWELS) + (rng.choice(_CODAS) if rng.random() < 0.5 else "")
        for _ in syllables
    )


def _framed(rng: random.Random, request: str, held_out: bool) -> str:
    frame = rng.choice(w.HELD_OUT_FRAMES) if held_out and rng.random() < 0.5 else _skewed(rng, w.FRAMES)
    return frame.replace("{r}", request).replace("{R}", request[0].upper() + request[1:])


def _skewed(rng: random.Random, options: Sequence[str]) -> str:
    """Half of the draws prefer the first, as people do; the other half are even, so that none is rare."""
    return zipf(rng, options) if rng.random() < 0.5 else rng.choice(options)
