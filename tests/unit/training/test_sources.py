"""Reading training data: what each kind of source gives, and how each kind of damage is reported."""

import json
import sys
from pathlib import Path

import pytest

from multitoken.errors import DataError
from multitoken.training.sources import Record, read_records, record_from_row


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_rows_of_every_kind(tmp_path: Path):
    path = write(
        tmp_path / "data.jsonl",
        {"question": "1+1?", "answer": "2"},
        {"instruction": "Translate.", "input": "oui", "output": "yes"},
        {"prompt": "only this"},
        {"prompt": "blank response", "response": " "},
        {"text": "a document"},
        {"messages": [{"role": "user", "content": "hi", "tool_calls": None}], "prompt": "not this"},
    )
    assert list(read_records(path)) == [
        Record(prompt="1+1?", response="2", where=f"{path}, line 1"),
        Record(prompt="Translate.\n\noui", response="yes", where=f"{path}, line 2"),
        Record(prompt="only this", where=f"{path}, line 3"),
        Record(prompt="blank response", where=f"{path}, line 4"),
        Record(text="a document", where=f"{path}, line 5"),
        Record(messages=({"role": "user", "content": "hi"},), where=f"{path}, line 6"),
    ]


def test_json_list_and_json_lines_in_a_json_file(tmp_path: Path):
    """Both are common in .json files. A list that is read line by line would be reported as invalid."""
    pretty = tmp_path / "pretty.json"
    pretty.write_text("\n" + json.dumps([{"text": "a"}, {"text": "b"}], indent=2), encoding="utf-8")
    lines = write(tmp_path / "lines.json", {"text": "a"}, {"text": "b"})
    for path, where in ((pretty, "item 2"), (lines, "line 2")):
        records = list(read_records(path))
        assert [record.text for record in records] == ["a", "b"]
        assert records[1].where == f"{path}, {where}"


def test_text_file_is_split_at_blank_lines(tmp_path: Path):
    """Also with Windows line ends and a byte order mark, which would otherwise be the first token."""
    path = tmp_path / "texts.txt"
    path.write_bytes("\ufeff\r\nfirst\r\nline two\r\n \r\n\r\nsecond".encode())
    assert [(record.text, record.where) for record in read_records(path)] == [
        ("first\nline two", f"{path}, line 2"),
        ("second", f"{path}, line 6"),
    ]


def test_folder_reads_one_kind_of_file_in_order(tmp_path: Path):
    """A README.md next to the data files is not training text."""
    write(tmp_path / "b.jsonl", {"text": "2"})
    write(tmp_path / "a.jsonl", {"text": "1"})
    (tmp_path / "README.md").write_text("about the data")
    assert [record.text for record in read_records(tmp_path)] == ["1", "2"]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ('{"text": "a"}\n{"text": \n', r"line 2, column \d+: not valid JSON"),
        ('{"text": "a"}\n\n["b"]\n', "line 3: found a JSON list; expected an object"),
        (
            '{"titel": "a", "id": 3}\n',
            r"line 1: no usable text under the keys 'titel', 'id'; expected 'messages', or pro",
        ),
        ('{"text": "  "}\n', "line 1: no usable text under the keys 'text'"),
        ('{"text": 3}\n', "line 1: 'text' is a int; expected a string"),
        ('{"prompt": "a", "response": ["b"]}\n', "line 1: 'response' is a list; expected a string"),
        ('{"messages": [{"role": "user"}]}\n', "line 1: messages: message 1 has content None"),
        ("\n \n", "is empty; expected 'messages'"),
        (b"\xff\xfe\x00", "is not UTF-8 text"),
    ],
)
def test_bad_rows_name_file_line_and_mend(tmp_path: Path, content: str | bytes, complaint: str):
    """A user with a million rows must be told which row is bad, what it contains and what was expected."""
    path = tmp_path / "data.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=complaint) as caught:
        list(read_records(path))
    assert str(path) in str(caught.value)


def test_broken_json_list_names_the_line_of_the_file(tmp_path: Path):
    """The parser counts lines from the start of the list. The user counts them from the top of the file."""
    path = tmp_path / "data.json"
    path.write_text('\n\n[\n{"text": "a"},\n{"text" "b"}]')
    with pytest.raises(DataError, match="line 5, column 9: not valid JSON"):
        list(read_records(path))


@pytest.mark.parametrize("source", ["./nothing", "nothing.jsonl", "/no/such/folder", "a/b/c"])
def test_missing_path_is_refused_before_iteration(source: str):
    """Raised lazily, the error would come only after the model is loaded. A path taken for a dataset name would fail
    only after a long wait for the network."""
    with pytest.raises(DataError, match="no such file or folder"):
        read_records(source)


def test_unusable_sources_are_refused_at_once(tmp_path: Path):
    with pytest.raises(DataError, match=r"holds no data; expected files that end in \.jsonl"):
        read_records(tmp_path)
    (tmp_path / "data.xlsx").touch()
    with pytest.raises(DataError, match=r"ends in '\.xlsx'; expected one of \.jsonl"):
        read_records(tmp_path / "data.xlsx")


def test_records_are_read_one_at_a_time(tmp_path: Path):
    """A bad last row must not prevent the first ones from streaming: the file is never held in memory as a whole."""
    path = write(tmp_path / "data.jsonl", {"text": "a"}, {"nothing": 1})
    records = read_records(path)
    assert next(records).text == "a"
    with pytest.raises(DataError, match="line 2"):
        next(records)


def test_parquet_and_saved_datasets(tmp_path: Path):
    """datasets fills missing values with None, which must count as missing and not as the string 'None'."""
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_list([{"prompt": "a", "response": "b"}, {"prompt": "c", "response": None}])
    rows.to_parquet(tmp_path / "rows.parquet")
    rows.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk(tmp_path / "splits")
    datasets.DatasetDict({"test": rows}).save_to_disk(tmp_path / "no-train")
    for source in ("rows.parquet", "saved", "splits"):
        found = [(record.prompt, record.response) for record in read_records(tmp_path / source)]
        assert found == [("a", "b"), ("c", None)]
    with pytest.raises(DataError, match="no split 'train'; give the folder of one of: test"):
        read_records(tmp_path / "no-train")
    (tmp_path / "broken.parquet").write_text("not parquet")
    with pytest.raises(DataError, match=r"cannot read .*broken.parquet as Parquet"):
        list(read_records(tmp_path / "broken.parquet"))


@pytest.mark.parametrize(
    ("source", "call"),
    [
        ("gsm", ("gsm", None, "train")),
        ("openai/gsm8k:main", ("openai/gsm8k", "main", "train")),
        ("openai/gsm8k:main@test[:10]", ("openai/gsm8k", "main", "test[:10]")),
        ("gsm@test", ("gsm", None, "test")),
    ],
)
def test_dataset_names(monkeypatch: pytest.MonkeyPatch, source: str, call: tuple):
    """The colon of a split's slice must not be taken for the one before a configuration."""
    datasets = pytest.importorskip("datasets")

    def load_dataset(name: str, config: str | None, *, split: str) -> list:
        assert (name, config, split) == call
        return [{"text": "a"}]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert [record.where for record in read_records(source)] == [f"{source}, row 1"]


def test_dataset_that_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch):
    """A mistyped path without a file extension is taken for a dataset name, so the message must cover both cases."""
    datasets = pytest.importorskip("datasets")

    def load_dataset(*_: object, **__: object) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DataError, match=r"mydata is not a local file or folder.*no network; expected a path or NAME"):
        read_records("mydata")


def test_files_are_read_without_the_datasets_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The library takes seconds to import, and a JSONL file does not need it."""
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert next(read_records(write(tmp_path / "data.jsonl", {"text": "a"}))).text == "a"


def test_without_response():
    """Rewriting keeps the prompt and the earlier turns; a plain text has no prompt and is refused, not skipped."""
    assert record_from_row({"prompt": "a", "response": "b"}, "x").without_response() == Record(prompt="a", where="x")
    user, assistant = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
    assert Record(messages=(user, assistant)).without_response() == Record(messages=(user,))
    assert Record(messages=(user,)).without_response() == Record(messages=(user,))
    with pytest.raises(DataError, match="x: rewriting responses needs prompts"):
        Record(text="a", where="x").without_response()


def test_a_blank_answer_of_a_chat_is_one_that_is_missing():
    """Otherwise it would be trained on as an answer that ends at once. An answer that calls a tool needs no text."""
    asked, blank = {"role": "user", "content": "hi"}, {"role": "assistant", "content": " "}
    assert record_from_row({"messages": [asked, blank]}, "row").messages == (asked,)
    assert record_from_row({"messages": [asked, blank, asked, blank]}, "row").messages == (asked, blank, asked)
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    assert record_from_row({"messages": [asked, call]}, "row").messages == (asked, call)
