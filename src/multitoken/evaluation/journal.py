"""The answers of a measurement, written one per line as they come, so that an interrupted measurement can continue. With
several processes, each writes its own file until everything is answered."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multitoken.checkpoints.atomic import check_output, disk_errors, write_text
from multitoken.errors import OutputError, UsageError
from multitoken.processes import Processes

from .rows import Outcome
from .tasks import Task

if TYPE_CHECKING:
    from multitoken.models.model import Model

NAME = "answers.jsonl"
_ALL = "answers*.jsonl"


def prepare_output(folder: Path | None, *, overwrite: bool, resume: bool) -> None:
    """Do what `check_answers` does. Then `overwrite` deletes the folder's old answers."""
    check_answers(folder, overwrite=overwrite, resume=resume)
    processes = Processes.here()
    if folder is not None and overwrite and processes.first:
        with disk_errors(folder):
            for path in folder.glob(_ALL):
                path.unlink()
    processes.wait()


def check_answers(folder: Path | None, *, overwrite: bool, resume: bool) -> None:
    """Refuse a folder that holds something, unless it is to be replaced or continued. None: nothing is kept. This is cheap and
    changes nothing: call it before the work.

    Raises `UsageError` and, as `check_output` does, `OutputError`.
    """
    if folder is None:
        if resume or overwrite:
            raise UsageError(
                f"{'resume' if resume else 'overwrite'} needs the output folder of the measurement: name it as output"
            )
        return
    processes = Processes.here()
    if processes.first:
        _check(folder, overwrite=overwrite, resume=resume)
    processes.wait()


def _check(folder: Path, *, overwrite: bool, resume: bool) -> None:
    if overwrite and resume:
        raise UsageError("overwrite and resume exclude each other: the old answers are replaced, or they are kept")
    journal = folder / NAME
    if resume:
        if not journal.is_file():
            raise UsageError(f"there is nothing to resume: {folder} has no {NAME}")
        return
    if journal.is_file() and not overwrite:
        raise OutputError(f"{journal} already exists: continue it with --resume, or replace it with --overwrite")
    check_output(folder, overwrite=overwrite)


class Journal:
    """`answers.jsonl` in a folder: a line that says what is measured, then one line per answer.

    Raises `UsageError` where the folder holds the answers of another measurement.
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any]) -> None:
        processes = Processes.here()
        self._folder, self._first = folder, processes.first
        self._path = folder / (NAME if processes.first else f"answers-{processes.index}.jsonl")
        self._facts = json.dumps(facts, ensure_ascii=False) + "\n"
        self._found: dict[tuple[str, int], Outcome] = {}
        lines = {path: self._read(path, json.loads(self._facts)) for path in sorted(folder.glob(_ALL))}
        processes.wait()  # no process writes before all have read
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        write_text(self._path, lines.get(self._path, self._facts))

    def outcomes(self) -> dict[tuple[str, int], Outcome]:
        """The known answers, by the combination's key and the question's number."""
        return self._found

    def add(self, key: str, questions: Sequence[int], outcomes: Sequence[Outcome]) -> None:
        """Write the answers of one batch to the file."""
        fresh = {(key, i): outcome for i, outcome in zip(questions, outcomes, strict=True)}
        if not self._path.exists():  # `complete` has merged it into the first process's file
            write_text(self._path, self._facts)
        with disk_errors(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(_lines(fresh))
        self._found |= fresh

    def complete(self, found: Mapping[tuple[str, int], Outcome]) -> None:
        """Merge the answers of all processes into one file, once none of them writes any more."""
        self._found |= found
        others = [path for path in self._folder.glob(_ALL) if path.name != NAME]
        if self._first and others:
            write_text(self._folder / NAME, self._facts + _lines(self._found))
            for path in others:
                path.unlink()
        Processes.here().wait()  # no process writes further answers before the files are merged

    def _read(self, path: Path, facts: dict[str, Any]) -> str:
        """Read a file's answers. -> its text, without an incomplete last line."""
        lines = path.read_text(encoding="utf-8").split("\n")
        said = _parsed(lines[0]) or {}
        for name in {*facts, *said}:
            if facts.get(name) != said.get(name):
                raise UsageError(
                    f"{path} holds answers of another measurement: {name} is {said.get(name)!r} there and "
                    f"{facts.get(name)!r} now; choose another folder, or replace it with --overwrite"
                )
        names = {field.name for field in fields(Outcome)}
        whole = [lines[0]]
        for line in lines[1:]:
            row = _parsed(line)
            if row is None or not names <= row.keys():  # the last line of a run that was killed while it wrote
                continue
            whole.append(line)
            values: dict[str, Any] = {name: row[name] for name in names}
            for name in ("token_ids", "lengths"):
                values[name] = tuple(row[name])
            self._found[row["run"], row["question"]] = Outcome(**values)
        return "\n".join(whole) + "\n"


def journal_of(
    folder: Path | None, task: Task, models: "Mapping[str, Model]", *, batch_size: int, **facts: Any
) -> Journal | None:
    """The journal in a prepared folder, for these questions and these models (by label); None if none is kept. facts:
    everything else that determines the answers."""
    if folder is None:
        return None
    told = {
        "task": task.name,
        "questions": task.hash,
        "max_new_tokens": task.max_new_tokens,
        "models": {label: each.name for label, each in models.items()},
        "dtypes": {label: str(each.hf.dtype).removeprefix("torch.") for label, each in models.items()},
        **facts,
        "batch_size": batch_size,
    }
    return Journal(folder, told)


def _lines(outcomes: Mapping[tuple[str, int], Outcome]) -> str:
    return "".join(
        json.dumps({"run": key, "question": i, **asdict(outcome)}) + "\n" for (key, i), outcome in outcomes.items()
    )


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None
