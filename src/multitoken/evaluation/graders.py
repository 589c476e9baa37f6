"""Is an answer right? Named graders, from the text that a model wrote and the expected answer."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal

from multitoken.errors import UsageError, nearest


@dataclass(frozen=True)
class Grader:
    """`grade(text, expected)` is True or False, or None where the task has no right answer."""

    name: str
    grade: Callable[[str, str], bool | None]


_MARKER = re.compile(r"answer\s*:|####", re.IGNORECASE)
# A sign counts only at the number and where no number, word or bracket stands before it: "20-2" and "20 - 2" hold 20
# and 2, "is -2" holds -2. A comma belongs to a number only between groups of three digits: "3, 4" are two numbers.
_NUMBER = re.compile(r"(?:(?<![\w)])[-−])?(?:\$\s?)?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?")


def _value(written: str) -> Decimal:
    return Decimal(re.sub(r"[$,\s]", "", written).replace("−", "-"))


def last_number(text: str) -> Decimal | None:
    """The first number after the last "Answer:" or "####"; without such a marker, the last number of the text.

    A marker with no number behind it gives None: an answer that was cut there was never given.

        >>> last_number("5 + 3 = 8\\nAnswer: $1,208.50.")
        Decimal('1208.50')
    """
    end_of_marker = None
    for marker in _MARKER.finditer(text):
        end_of_marker = marker.end()
    if end_of_marker is not None:
        found = _NUMBER.search(text, end_of_marker)
        return _value(found.group()) if found else None
    numbers = _NUMBER.findall(text)
    return _value(numbers[-1]) if numbers else None


def is_numeric_answer(answer: str) -> bool:
    """Is the expected answer a number alone ("1,234", "$18.00") or a worked one that ends in "#### 18"?"""
    return bool(_NUMBER.fullmatch(answer.strip().rstrip("."))) or ("####" in answer and last_number(answer) is not None)


def _grade_last_number(text: str, expected: str) -> bool:
    said = last_number(text)
    return said is not None and said == last_number(expected)


def _grade_exact(text: str, expected: str) -> bool:
    return text.strip() == expected.strip()


def _grade_contains(text: str, expected: str) -> bool:
    return expected.strip() in text


def _grade_none(text: str, expected: str) -> None:
    return None


GRADERS = {
    grader.name: grader
    for grader in (
        Grader("last-number", _grade_last_number),
        Grader("exact", _grade_exact),
        Grader("contains", _grade_contains),
        Grader("none", _grade_none),
    )
}


def grader_named(name: str) -> Grader:
    """The grader of that name. Raises `UsageError` for an unknown one."""
    if name not in GRADERS:
        raise UsageError(f"there is no grader {name!r}{nearest(name, GRADERS)}")
    return GRADERS[name]
