"""Training data from any supported source -> records, one at a time.

| source                      | records                                                                      |
|-----------------------------|------------------------------------------------------------------------------|
| `.jsonl`, `.json`           | one JSON object a line, or one JSON list of objects                          |
| `.parquet`                  | rows                                                                         |
| `.txt`, `.md`               | documents separated by blank lines                                           |
| a folder                    | its files in order of name: JSON if it has any, else Parquet, else text      |
| a `save_to_disk` folder     | rows of its split `train`                                                    |
| `NAME[:CONFIG][@SPLIT]`     | a dataset of the Hub, split `train` by default; `@train[:1000]` takes a part |

A row is a chat (`messages`, with its `tools` if it has any), a prompt with or without a response, or a `text`. They are
looked for in this order, under the names below. A response that is null or blank counts as missing: the teacher writes it.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from multitoken.errors import DataError, UsageError
from multitoken.models.prompts import Message, Tool, check_messages

PROMPT_KEYS = ("prompt", "question", "instruction", "query")
RESPONSE_KEYS = ("response", "answer", "completion", "output")
EXPECTED = f"expected 'messages', or {'/'.join(PROMPT_KEYS)} (and {'/'.join(RESPONSE_KEYS)} for a response), or 'text'"
JSON_SUFFIXES, TABLE_SUFFIXES, TEXT_SUFFIXES = (".jsonl", ".json"), (".parquet",), (".txt", ".md")
SUFFIXES = (*JSON_SUFFIXES, *TABLE_SUFFIXES, *TEXT_SUFFIXES)


@dataclass(frozen=True)
class Record:
    """One example: exactly one of `messages`, `prompt` (with its `response`, if it has one) and `text`.

    `tools` are what the chat template describes to the model. `where` names the record's source, for error messages.
    """

    messages: tuple[Message, ...] | None = None
    prompt: str | None = None
    response: str | None = None
    text: str | None = None
    tools: tuple[Tool, ...] | None = None
    where: str = "record"

    def __post_init__(self) -> None:
        assert [self.messages, self.prompt, self.text].count(None) == 2
        assert self.response is None or self.prompt is not None

    def without_response(self) -> "Record":
        """The same prompt, to be answered again. Raises `DataError` for a plain text, which has no prompt."""
        if self.text is not None:
            raise DataError(f"{self.where}: rewriting responses needs prompts, but this is plain text")
        if self.messages is not None and self.messages[-1]["role"] == "assistant":
            return replace(self, messages=self.messages[:-1])
        return replace(self, response=None)


def read_records(source: str | Path) -> Iterator[Record]:
    """The records of a file, a folder or a dataset name, in order.

    Raises `DataError`: at once for a source that does not exist, and on reaching it for a record that cannot be used.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
            return _rows_to_records(_saved_dataset(path), str(path))
        return _read_files(_data_files(path))
    if path.is_file():
        if path.suffix.lower() not in SUFFIXES:
            raise DataError(f"{path} ends in {path.suffix!r}; expected one of {', '.join(SUFFIXES)}")
        return _read_files([path])
    if _looks_like_path(str(source)):
        raise DataError(f"no such file or folder: {source}")
    return _rows_to_records(_hub_dataset(str(source)), str(source))


def record_from_row(row: Mapping[str, Any], where: str) -> Record:
    """A row of named values -> a record. Raises `DataError` naming the keys found and the keys expected."""
    row = {key: value for key, value in row.items() if value is not None}
    if "messages" in row:
        try:
            messages = check_messages(row["messages"])
        except UsageError as error:
            raise DataError(f"{where}: messages: {error}") from error
        messages = tuple(map(_message, messages))
        if len(messages) > 1 and _is_blank_answer(messages[-1]):
            messages = messages[:-1]
        return Record(messages=messages, tools=_tools(row.get("tools"), where), where=where)
    if prompt := _text_under(PROMPT_KEYS, row, where):
        if extra := _text_under(("input",), row, where):  # Alpaca: the text that the instruction is about
            prompt = f"{prompt}\n\n{extra}"
        return Record(prompt=prompt, response=_text_under(RESPONSE_KEYS, row, where), where=where)
    if text := _text_under(("text",), row, where):
        return Record(text=text, where=where)
    raise DataError(f"{where}: no usable text under the keys {', '.join(map(repr, row)) or '(none)'}; {EXPECTED}")


def _is_blank_answer(message: Message) -> bool:
    """Whether it is a message of the assistant that says nothing, and nothing in other keys either (tool calls, reasoning)."""
    return message.keys() == {"role", "content"} and message["role"] == "assistant" and not message["content"].strip()


def _message(message: Message) -> Message:
    """The message without keys that hold None, which datasets add where other messages have them. Arguments of tool calls
    that come as JSON text (the form of the OpenAI API) become the mapping that chat templates expect."""
    message = {key: value for key, value in message.items() if value is not None}
    if "tool_calls" in message:
        message["tool_calls"] = [_tool_call(call) for call in message["tool_calls"]]
    return message


def _tool_call(call: dict[str, Any]) -> dict[str, Any]:
    if isinstance(function := call.get("function"), dict):
        return {**call, "function": _tool_call(function)}
    if isinstance(text := call.get("arguments"), str):
        try:
            arguments = json.loads(text)
        except json.JSONDecodeError:  # a mistake by the model that wrote it: kept as it is
            return call
        if isinstance(arguments, dict):
            return {**call, "arguments": arguments}
    return call


def _tools(value: Any, where: str) -> tuple[Tool, ...] | None:
    """Tool descriptions: a list, or a list as JSON text, which is how tables store tools that differ in their fields."""
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else None
        except json.JSONDecodeError as error:
            raise DataError(f"{where}: 'tools' is not valid JSON ({error.msg}); expected a list of objects") from error
    if value is None:
        return None
    if not isinstance(value, list | tuple) or not all(isinstance(tool, dict) for tool in value):
        raise DataError(f"{where}: 'tools' is a {type(value).__name__}; expected a list of objects")
    return tuple(value) or None


def _text_under(keys: tuple[str, ...], row: Mapping[str, Any], where: str) -> str | None:
    key = next((key for key in keys if key in row), None)
    if key is None:
        return None
    if not isinstance(row[key], str):
        raise DataError(f"{where}: {key!r} is a {type(row[key]).__name__}; expected a string")
    return row[key] if row[key].strip() else None


def _rows_to_records(rows: Iterable[Any], name: str) -> Iterator[Record]:
    number = 0
    for number, row in enumerate(rows, 1):
        yield record_from_row(_without_nulls(row), f"{name}, row {number}")
    if not number:
        raise DataError(f"{name} holds no rows")


def _without_nulls(value: Any) -> Any:
    """Tables give every message and every tool call the fields of all others, set to None. Remove them."""
    if isinstance(value, Mapping):
        return {key: _without_nulls(part) for key, part in value.items() if part is not None}
    return [_without_nulls(part) for part in value] if isinstance(value, list) else value


# Files


def _data_files(folder: Path) -> list[Path]:
    # One kind of file only: a folder of rows often also has a README.md, which is not training text.
    try:
        files = sorted(path for path in folder.iterdir() if path.is_file())
    except OSError as error:
        raise DataError(f"cannot read folder {folder}: {error.strerror}") from error
    for suffixes in (JSON_SUFFIXES, TABLE_SUFFIXES, TEXT_SUFFIXES):
        if of_one_kind := [path for path in files if path.suffix.lower() in suffixes]:
            return of_one_kind
    raise DataError(f"folder {folder} holds no data; expected files that end in {', '.join(SUFFIXES)}")


def _read_files(paths: list[Path]) -> Iterator[Record]:
    for path in paths:
        suffix, found = path.suffix.lower(), False
        if suffix in TABLE_SUFFIXES:
            yield from _rows_to_records(_parquet_rows(path), str(path))
            continue
        try:
            with path.open(encoding="utf-8-sig") as lines:
                for record in _json_records(lines, path) if suffix in JSON_SUFFIXES else _documents(lines, path):
                    found = True
                    yield record
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise DataError(f"{path} is not UTF-8 text ({error.reason}, byte {error.start}): convert it") from error
        if not found:
            raise DataError(f"{path} is empty; {EXPECTED if suffix in JSON_SUFFIXES else 'expected text'}")


def _json_records(lines: Iterable[str], path: Path) -> Iterator[Record]:
    lines = iter(lines)
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        if path.suffix.lower() == ".json" and line.lstrip().startswith("["):
            whole = "\n" * (number - 1) + line + "".join(lines)  # so that an error names the file's own line
            for item, row in enumerate(_parse_json(whole, path, 1), 1):
                yield _json_record(row, f"{path}, item {item}")
            return
        yield _json_record(_parse_json(line.rstrip(), path, number), f"{path}, line {number}")


def _parse_json(text: str, path: Path, first_line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"{path}, line {first_line + error.lineno - 1}, column {error.colno}"
        wanted = " or one list of objects" if path.suffix.lower() == ".json" else ""
        raise DataError(f"{where}: not valid JSON ({error.msg}); expected one object a line{wanted}") from error


def _json_record(row: object, where: str) -> Record:
    if not isinstance(row, dict):
        raise DataError(f"{where}: found a JSON {type(row).__name__}; expected an object: {EXPECTED}")
    return record_from_row(row, where)


def _documents(lines: Iterable[str], path: Path) -> Iterator[Record]:
    document, start = [], 0
    for number, line in enumerate(lines, 1):
        if line.strip():
            start = start if document else number
            document.append(line)
        elif document:
            yield Record(text="".join(document).rstrip("\r\n"), where=f"{path}, line {start}")
            document = []
    if document:
        yield Record(text="".join(document).rstrip("\r\n"), where=f"{path}, line {start}")


# Tables: their libraries are imported only where a source needs them


def _looks_like_path(source: str) -> bool:
    return source.startswith((".", "/", "~")) or source.lower().endswith(SUFFIXES) or source.count("/") > 1


def _parquet_rows(path: Path) -> Iterator[Any]:
    # Not through `datasets`, which would copy the file to its cache and ask the Hub first.
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                yield from batch.to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"cannot read {path} as Parquet: {error}") from error


def _saved_dataset(path: Path) -> Iterable[Any]:
    import datasets

    try:
        saved = datasets.load_from_disk(str(path))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read the dataset saved in {path}: {error}") from error
    if not isinstance(saved, datasets.DatasetDict):
        return saved
    if "train" not in saved:
        splits = ", ".join(map(str, saved))
        raise DataError(f"the dataset saved in {path} has no split 'train'; give the folder of one of: {splits}")
    return saved["train"]


def _hub_dataset(source: str) -> Iterable[Any]:
    import datasets
    from datasets.exceptions import DatasetsError

    name_and_config, _, split = source.partition("@")
    name, _, config = name_and_config.partition(":")
    try:
        return datasets.load_dataset(name, config or None, split=split or "train")
    except (OSError, ValueError, DatasetsError) as error:
        raise DataError(
            f"{source} is not a local file or folder and cannot be loaded as a dataset: {error}; "
            "expected a path or NAME[:CONFIG][@SPLIT]"
        ) from error
