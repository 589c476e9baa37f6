import json
from pathlib import Path
from typing import Any

import pytest

from multitoken.errors import DataError, UsageError
from multitoken.evaluation.tasks import Question, load_task


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def test_every_form_of_prompt_loads(tmp_path: Path) -> None:
    """Guards against a key that is documented but not read, and against blank lines that shift or break rows."""
    chat = [{"role": "user", "content": "1 + 1?"}]
    path = write(
        tmp_path / "sums.jsonl",
        {"prompt": "2 + 3?", "answer": "5", "level": 1},
        "",
        {"question": "4 + 4?", "answer": 8},
        {"messages": chat, "answer": "1 + 1 = 2\n#### 2"},
    )
    task = load_task(path, max_new_tokens=32)
    assert task.name == "sums"
    assert task.max_new_tokens == 32
    assert task.questions == (Question("2 + 3?", "5"), Question("4 + 4?", "8"), Question(chat, "1 + 1 = 2\n#### 2"))


@pytest.mark.parametrize(
    ("answers", "grader"),
    [
        (["5", "1,000"], "last-number"),
        ([1e-7, 2.5, 1e20], "last-number"),
        (["5", "five"], "exact"),
        ([None, None], "none"),
        (["", None], "none"),
    ],
)
def test_the_answers_choose_the_grader(tmp_path: Path, answers: list[str | None], grader: str) -> None:
    """Guards against grading text by its numbers, or marking every answer wrong where there is nothing to grade."""
    path = write(tmp_path / "t.jsonl", *({"prompt": "p", "answer": answer} for answer in answers))
    assert load_task(path).grader.name == grader


def test_a_named_grader_wins(tmp_path: Path) -> None:
    """Guards against an inferred grader that overrides the one given explicitly."""
    path = write(tmp_path / "t.jsonl", {"prompt": "p", "answer": "5"})
    assert load_task(path, grader="contains").grader.name == "contains"
    assert load_task(path, grader="none").grader.name == "none"


def test_only_the_first_questions_are_read(tmp_path: Path) -> None:
    """Guards against reading, and failing on, rows that nobody asked for."""
    path = write(tmp_path / "t.jsonl", {"prompt": "a"}, {"prompt": "b"}, "not json")
    assert [question.prompt for question in load_task(path, 2).questions] == ["a", "b"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{oops", "line 2 is not JSON"),
        ("[1]", "line 2 is a JSON list; expected an object"),
        ({"text": "x"}, "line 2 has none of them; expected exactly one"),
        ({"prompt": "x", "question": "y"}, "line 2 has 'prompt' and 'question'; expected exactly one"),
        ({"prompt": " "}, "line 2: 'prompt' is ' '; expected text"),
        ({"question": 3}, "line 2: 'question' is 3; expected text"),
        ({"messages": []}, "line 2: 'messages' is \\[\\]; expected a list"),
        ({"messages": [{"role": "user"}]}, "line 2: a message is .*'role' and 'content'"),
        (
            {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "5"}]},
            "line 2: the last message is the assistant's",
        ),
        ({"prompt": "x", "answer": True}, "line 2: 'answer' is True; expected text or a number"),
        ({"prompt": "x"}, "line 2 has no 'answer' to grade against"),
    ],
)
def test_a_bad_row_is_named_by_its_line(tmp_path: Path, row: Any, message: str) -> None:
    """Guards against a traceback, or a question silently dropped, in the middle of a file of thousands."""
    path = write(tmp_path / "t.jsonl", {"prompt": "p", "answer": "5"}, row)
    with pytest.raises(DataError, match=message):
        load_task(path)


def test_an_answer_without_a_number_is_refused_for_last_number(tmp_path: Path) -> None:
    """Guards against a question that no answer can ever get right, which would look like the model's failure."""
    path = write(tmp_path / "t.jsonl", {"prompt": "p", "answer": "5"}, {"prompt": "p", "answer": "five"})
    with pytest.raises(DataError, match="line 2: the answer 'five' holds no number"):
        load_task(path, grader="last-number")


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    """Guards against bare OSError and UnicodeDecodeError tracebacks, and against a task of zero questions."""
    with pytest.raises(DataError, match=r"missing\.jsonl cannot be read"):
        load_task(tmp_path / "missing.jsonl")
    with pytest.raises(DataError, match="cannot be read"):
        load_task(tmp_path)
    latin = tmp_path / "latin.jsonl"
    latin.write_bytes(b'{"prompt": "caf\xe9"}\n')
    with pytest.raises(DataError, match="is not UTF-8 text"):
        load_task(latin)
    with pytest.raises(DataError, match="holds no questions"):
        load_task(write(tmp_path / "empty.jsonl", ""))


def test_arguments_that_cannot_be(tmp_path: Path) -> None:
    """Guards against measuring fewer prompts than asked for, or none, without an error."""
    path = write(tmp_path / "t.jsonl", {"prompt": "a"})
    with pytest.raises(DataError, match=r"5 questions asked for, but .* holds 1; ask for 1"):
        load_task(path, 5)
    with pytest.raises(UsageError, match="0 questions asked for"):
        load_task(path, 0)
    with pytest.raises(UsageError, match="max_new_tokens is 0"):
        load_task(path, max_new_tokens=0)
