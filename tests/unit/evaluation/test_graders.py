from decimal import Decimal

import pytest

from multitoken.errors import DataError, UsageError
from multitoken.evaluation.graders import grade, grader_named, is_numeric_answer, last_number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("5 + 3 = 8\nAnswer: 8", "8"),
        ("Answer: 7\nNo, wait.\nAnswer: 8 apples, of 20", "8"),  # after the last marker, its first number
        ("He earns 9 * 2 = $<<9*2=18>>18.\n#### 18", "18"),
        ("ANSWER : $1,208.50.", "1208.50"),
        ("so it is 12, then 14.", "14"),  # no marker: the last number, without the full stop
        ("**Answer:** 42", "42"),
        ("Answer: -5", "-5"),
        ("Answer: −5", "-5"),  # the typographic minus
        ("Answer: -$5", "-5"),
        ("left: 20-2", "2"),  # a difference, not minus two
        ("left: 20 - 2", "2"),
        ("- 2 apples", "2"),  # a bullet
        ("Answer: $-5", "-5"),
        ("USD1,234", "1234"),
        ("the numbers 3, 400", "400"),
        ("1,234,567 in all", "1234567"),
        ("1234,567", "567"),  # not a thousands separator: two numbers
        ("0.75", "0.75"),
        ("Answer: .75", "0.75"),
        ("Answer: -$.75", "-0.75"),
        ("it is ...75", "75"),
    ],
)
def test_last_number_reads_what_people_and_gsm8k_write(text: str, number: str) -> None:
    """Guards against marking right answers wrong because of a comma, a dollar sign, a full stop or a minus."""
    assert last_number(text) == Decimal(number)


@pytest.mark.parametrize("text", ["", "no number here", "5 + 3 = 8\nAnswer:", "#### none"])
def test_an_answer_that_was_never_given_is_none(text: str) -> None:
    """Guards against taking a number of the calculation as the answer when the answer itself was cut off."""
    assert last_number(text) is None


def test_last_number_grades_by_value() -> None:
    """Guards against comparing strings, where 18 is not 18.0, and against counting two missing numbers as equal."""
    grade = grader_named("last-number").grade
    assert grade("Answer: 18", "She makes 9 * 2 = 18.\n#### 18.0") is True
    assert grade("Answer: 1,800", "1800") is True
    assert grade("Answer: 81", "18") is False
    assert grade("I do not know", "nothing either") is False


def test_the_other_graders() -> None:
    """Guards against counting an ungraded task as wrong, and against an `exact` that depends on spaces around an
    answer."""
    assert grader_named("exact").grade(" 1 2 3\n", "1 2 3") is True
    assert grader_named("exact").grade("1 2 3 4", "1 2 3") is False
    assert grader_named("contains").grade("it is Paris, of course", " Paris ") is True
    assert grader_named("contains").grade("it is Rome", "Paris") is False
    assert grader_named("none").grade("anything", "") is None


@pytest.mark.parametrize(
    ("answer", "numeric"),
    [("18", True), (" $1,000. ", True), ("2 + 2 = 4\n#### 4", True), ("#### four", False), ("18 apples", False)],
)
def test_numeric_answers_are_told_from_text(answer: str, numeric: bool) -> None:
    """Guards against grading "18 apples or 20" by a number that only happens to be in the text."""
    assert is_numeric_answer(answer) is numeric


def test_an_unknown_grader_is_refused_with_the_nearest() -> None:
    """Guards against a traceback (KeyError) for a typing mistake."""
    with pytest.raises(UsageError, match=r"no grader 'last-numbr'; did you mean 'last-number'\?"):
        grader_named("last-numbr")


def test_regex_and_rouge() -> None:
    """Guards against a pattern that must match from the start, and against a score that is only true or false."""
    assert grader_named("regex").grade("so it is 12 km", r"\b12\s*km") is True
    assert grader_named("regex").grade("112 kg", r"\b12\s*km") is False
    assert grader_named("rouge-l").grade("the cat sat down", "the cat sat") == pytest.approx(6 / 7)
    assert grader_named("rouge-l").grade("nothing", "the cat sat") == 0.0


def test_a_grader_of_ones_own(tmp_path, monkeypatch) -> None:
    """Guards against a user's grader whose error ends the whole measurement without naming the question, and against
    counting an invalid grade."""
    (tmp_path / "my_graders.py").write_text(
        "def half(text, expected): return 0.5\ndef bad(text, expected): raise KeyError('x')\n"
        "def two(text, expected): return 2\nnumber = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    assert grade(grader_named("my_graders:half"), "a", "b", "question 1") == 0.5
    with pytest.raises(DataError, match=r"question 3: the grader 'my_graders:bad' raises KeyError: 'x'"):
        grade(grader_named("my_graders:bad"), "a", "b", "question 3")
    with pytest.raises(DataError, match="returns 2; expected True, False, 0 to 1, or None"):
        grade(grader_named("my_graders:two"), "a", "b", "question 3")
    with pytest.raises(UsageError, match="'my_graders:number' is 3; expected a function"):
        grader_named("my_graders:number")
    with pytest.raises(UsageError, match="cannot be imported"):
        grader_named("my_graders:nothing")
