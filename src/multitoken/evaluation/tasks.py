"""A task: prompts and how their answers are graded. It is read from a JSONL file with one question per line."""

import hashlib
import json
import re
from dataclasses import dataclass
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any

from multitoken.errors import DataError, UsageError

from .graders import Grader, grader_named, is_numeric_answer, last_number
from .protocols import Prompt

_PROMPT_KEYS = ("prompt", "question", "messages")


@dataclass(frozen=True)
class Question:
    """A prompt (text, or chat messages) and what the grader looks for; "" where every answer is fine."""

    prompt: Prompt
    answer: str = ""


@dataclass(frozen=True)
class Task:
    """Questions, their grader and how many tokens an answer may have."""

    name: str
    questions: tuple[Question, ...]
    grader: Grader
    max_new_tokens: int = 256

    @property
    def hash(self) -> str:
        """SHA-256 of the questions and the grader's name."""
        said = json.dumps([self.grader.name, *([q.prompt, q.answer] for q in self.questions)])
        return hashlib.sha256(said.encode()).hexdigest()


def load_task(
    path: str | Path, number: int | None = None, *, grader: str | None = None, max_new_tokens: int = 256
) -> Task:
    """The first `number` questions of a JSONL file (None: all), named after the file.

    A row has one of "prompt", "question" (text) or "messages" (chat), and may have "answer"; other keys are ignored.
    Without a `grader`, the answers determine it: "last-number" for numbers (also for GSM8K's "... #### 18"), "none" if there
    are no answers, otherwise "exact". Raises `DataError`, naming the line, for a row that cannot be used, and `UsageError`
    for the arguments.
    """
    if number is not None and number < 1:
        raise UsageError(f"{number} questions asked for; expected at least 1")
    if max_new_tokens < 1:
        raise UsageError(f"max_new_tokens is {max_new_tokens}; expected at least 1")
    path = Path(path)
    chosen = grader_named(grader) if grader is not None else None
    numbered = _read(path, number)
    if not numbered:
        raise DataError(f"{path} holds no questions; expected one JSON object a line, such as {_example()}")
    if number is not None and len(numbered) < number:
        raise DataError(f"{number} questions asked for, but {path} holds {len(numbered)}; ask for {len(numbered)}")
    _check_answers(path, numbered, chosen)
    questions = tuple(question for _, question in numbered)
    return Task(path.stem, questions, chosen or _inferred(questions), max_new_tokens)


def _read(path: Path, number: int | None) -> list[tuple[int, Question]]:
    """(line number, question) of the first `number` lines that are not blank."""
    try:
        with path.open(encoding="utf-8") as file:
            rows = ((i, line) for i, line in enumerate(file, start=1) if line.strip())
            return [(i, _question(line, f"{path}, line {i}")) for i, line in islice(rows, number)]
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); expected a JSONL file of questions") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); convert it") from error


def _question(line: str, place: str) -> Question:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{place} is not JSON ({error.msg}); expected {_example()}") from error
    if not isinstance(row, dict):
        raise DataError(f"{place} is a JSON {type(row).__name__}; expected an object, such as {_example()}")
    given = [key for key in _PROMPT_KEYS if key in row]
    if len(given) != 1:
        found = " and ".join(map(repr, given)) or "none of them"
        raise DataError(f'{place} has {found}; expected exactly one of "prompt", "question" and "messages"')
    key = given[0]
    prompt = _messages(row[key], place) if key == "messages" else _text(row[key], key, place)
    return Question(prompt, _answer(row.get("answer"), place))


def _text(value: Any, key: str, place: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{place}: {key!r} is {_shown(value)}; expected text")
    return value


def _messages(value: Any, place: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not value:
        raise DataError(f"{place}: 'messages' is {_shown(value)}; expected a list of {{role, content}} objects")
    for message in value:
        if not (isinstance(message, dict) and isinstance(message.get("role"), str) and "content" in message):
            raise DataError(f"{place}: a message is {_shown(message)}; expected an object with 'role' and 'content'")
    if value[-1]["role"] == "assistant":
        # Otherwise the model would be shown the answer that it is asked for.
        raise DataError(f"{place}: the last message is the assistant's; leave it out, or give it as 'answer'")
    return value


def _answer(value: Any, place: str) -> str:
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise DataError(f"{place}: 'answer' is {_shown(value)}; expected text or a number")
    # str(1e-05) is "1e-05", which no grader reads as a number.
    return format(Decimal(str(value)), "f") if isinstance(value, float) else str(value)


def _check_answers(path: Path, numbered: list[tuple[int, Question]], grader: Grader | None) -> None:
    """Check, before a model runs for hours, that every row can be graded or that none is meant to be."""
    if grader is not None and grader.name == "none":
        return
    wanted = grader is not None or any(question.answer.strip() for _, question in numbered)
    for line, question in numbered:
        if wanted and not question.answer.strip():
            mend = "give it one, or choose the grader 'none'"
            raise DataError(f"{path}, line {line} has no 'answer' to grade against; {mend}")
        if grader is not None and grader.name == "last-number" and last_number(question.answer) is None:
            mend = "expected one for the grader 'last-number'; choose 'exact' or 'contains'"
            raise DataError(f"{path}, line {line}: the answer {_shown(question.answer)} holds no number; {mend}")
        if grader is not None and grader.name == "regex":
            try:
                re.compile(question.answer)
            except re.error as error:
                raise DataError(
                    f"{path}, line {line}: {_shown(question.answer)} is not a regular expression: {error}"
                ) from error


def _inferred(questions: tuple[Question, ...]) -> Grader:
    if not questions[0].answer.strip():
        return grader_named("none")
    numeric = all(is_numeric_answer(question.answer) for question in questions)
    return grader_named("last-number" if numeric else "exact")


def _shown(value: Any) -> str:
    written = repr(value)
    return written if len(written) <= 60 else written[:57] + "..."


def _example() -> str:
    return '{"prompt": "What is 2 + 3?", "answer": "5"}'
