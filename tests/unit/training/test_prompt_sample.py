"""Prompts drawn from data of any kind."""

import json

import pytest

from multitoken.errors import DataError
from multitoken.training.prompt_sample import sample_prompts
from tests.tiny import tiny_tokenizer


def written(path, rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_prompts_alone_are_drawn_and_long_ones_counted(tmp_path) -> None:
    """Responses of the data must not be taken for prompts, and what was dropped must not go unsaid."""
    rows = [{"prompt": f"w{4 + i}", "response": "w50 w51"} for i in range(10)] + [{"prompt": "w9 " * 30}] * 5
    sample = sample_prompts(written(tmp_path / "d.jsonl", rows), tiny_tokenizer(), 64, longest=8)
    assert sorted(sample.prompts) == [[4 + i] for i in range(10)]
    assert str(sample) == "10 of 15 prompts, 5 longer ones dropped"


def test_draws_are_the_same_each_time_and_not_the_files_head(tmp_path) -> None:
    """A file sorted by kind would be judged by its first kind; a draw that changes makes estimates that do."""
    source = written(tmp_path / "d.jsonl", [{"prompt": f"w{4 + i}"} for i in range(40)])
    first, again = (sample_prompts(source, tiny_tokenizer(), 6, longest=8).prompts for _ in range(2))
    assert first == again and len(first) == 6
    assert max(ids[0] for ids in first) > 12


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "w5 w6"}, "line 1: plain text has no prompt"),
        ({"prompt": "w5 " * 20}, "all 3 prompts .* longer than 8 tokens"),
        ({"title": "w5"}, "no usable text"),
    ],
)
def test_data_without_usable_prompts_is_named(tmp_path, row, message) -> None:
    """An estimate of nothing would be a traceback far from its cause."""
    with pytest.raises(DataError, match=message):
        sample_prompts(written(tmp_path / "d.jsonl", [row] * 3), tiny_tokenizer(), 64, longest=8)
