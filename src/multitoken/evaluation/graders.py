"""Is an answer right? Graders decide from the text that a model wrote and the expected answer.

To add a grader, write a function and a line in `GRADERS`. Or, without changing this package, use your own function:
`--grader my_module:my_function`.
"""

import importlib
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any, cast

from multitoken.errors import DataError, UsageError, nearest

Grade = bool | float | None


@dataclass(frozen=True)
class Grader:
    """`grade(text, expected)` is True or False, a score from 0 to 1, or None where the task has no right answer."""

    name: str
    grade: Callable[[str, str], Grade]


_MARKER = re.compile(r"answer\s*:|####", re.IGNORECASE)
# A sign counts only directly at the number, and only if no number, word or bracket comes directly before it: "20-2" and
# "20 - 2" hold 20 and 2, "is -2" holds -2. A comma belongs to a number only between groups of three digits: "3, 4" are
# two numbers.
_NUMBER = re.compile(r"(?:(?<![\w)])[-−])?(?:\$\s?)?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?<![\w.])\.\d+)")


def _value(written: str) -> Decimal:
    return Decimal(re.sub(r"[$,\s]", "", written).replace("−", "-"))


def last_number(text: str) -> Decimal | None:
    """The first number after the last "Answer:" or "####"; without such a marker, the last number of the text.

    A marker with no number after it gives None: the text was cut off there, so no answer was given.

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
    """Is the expected answer only a number ("1,234", "$18.00"), or a worked answer that ends in "#### 18"?"""
    return bool(_NUMBER.fullmatch(answer.strip().rstrip("."))) or ("####" in answer and last_number(answer) is not None)


def _grade_last_number(text: str, expected: str) -> bool:
    said = last_number(text)
    return said is not None and said == last_number(expected)


def _grade_exact(text: str, expected: str) -> bool:
    return text.strip() == expected.strip()


def _grade_contains(text: str, expected: str) -> bool:
    return expected.strip() in text


def _grade_regex(text: str, expected: str) -> bool:
    return re.search(expected, text) is not None


def _grade_rouge_l(text: str, expected: str) -> float:
    """ROUGE-L's F-measure, from 0 to 1."""
    return _rouge().score(expected, text)["rougeL"].fmeasure


@cache
def _rouge() -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ModuleNotFoundError as error:
        raise UsageError(
            "the grader 'rouge-l' needs the package rouge-score; pip install 'multitoken[eval]'"
        ) from error
    return RougeScorer(["rougeL"])


def _grade_none(text: str, expected: str) -> None:
    return None


GRADERS = {
    grader.name: grader
    for grader in (
        Grader("last-number", _grade_last_number),
        Grader("exact", _grade_exact),
        Grader("contains", _grade_contains),
        Grader("regex", _grade_regex),
        Grader("rouge-l", _grade_rouge_l),
        Grader("none", _grade_none),
    )
}


def grader_named(name: str) -> Grader:
    """The grader of that name, or the function that "module:function" names. The working directory is searched too.

    Raises `UsageError` where there is none.
    """
    module_name, colon, function_name = name.partition(":")
    if not colon:
        if name not in GRADERS:
            raise UsageError(
                f"there is no grader {name!r}{nearest(name, GRADERS)}; or name your own as module:function"
            )
        if name == "rouge-l":
            _rouge()  # a missing package raises here, not after the first answer
        return GRADERS[name]
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"grader {name!r} cannot be imported: {error}; expected module:function") from error
    if not callable(function):
        raise UsageError(f"grader {name!r} is {function!r}; expected a function of (text, expected)")
    return Grader(name, cast(Callable[[str, str], Grade], function))


def grade(grader: Grader, text: str, expected: str, place: str) -> Grade:
    """The grader's result. Raises `DataError`, naming the place, where the grader raises or returns something else."""
    try:
        says = grader.grade(text, expected)
    except UsageError:
        raise
    except Exception as error:
        raise DataError(f"{place}: the grader {grader.name!r} raises {type(error).__name__}: {error}") from error
    if says is None or isinstance(says, bool) or (isinstance(says, int | float) and 0 <= says <= 1):
        return says
    raise DataError(f"{place}: the grader {grader.name!r} returns {says!r}; expected True, False, 0 to 1, or None")
