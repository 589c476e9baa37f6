"""The teacher's responses: written once, in batches of similar length, and never lost."""

import errno
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Barrier
from typing import Any, Literal

import pytest
import torch
from rich.console import Console
from transformers import BloomConfig, BloomForCausalLM

from multitoken.config import make_config
from multitoken.errors import DataError, OutputError
from multitoken.processes import Processes
from multitoken.training.responses import Written, teacher_key, write_missing
from multitoken.training.teacher import response_writer
from tests.tiny import tiny_tokenizer

PROMPTS = [[1], [2, 2, 2], [3, 3], [1], [4, 4, 4, 4]]


class Writer:
    """Answers with the prompt's length and its number. Records the batches, and is interrupted at batch `break_at`."""

    def __init__(self, break_at: int | None = None, *, rows: int = 2) -> None:
        self.rows = rows
        self.batches: list[tuple[int, list[list[int]]]] = []
        self.break_at = break_at

    def __call__(self, prompts: list[list[int]], numbers: list[int]) -> Iterator[dict[int, Written]]:
        for start in range(0, len(prompts), self.rows):
            part = prompts[start : start + self.rows]
            if len(self.batches) == self.break_at:
                raise KeyboardInterrupt
            self.batches.append((numbers[start], part))
            yield {start + i: ([len(ids), numbers[start + i], 0], True) for i, ids in enumerate(part)}


def test_order_of_the_answers_and_of_the_batches(tmp_path: Path):
    """Answers are returned in the order of the prompts, although batches go from long to short. Equal prompts are
    answered once."""
    writer = Writer()
    responses = write_missing(PROMPTS, writer, tmp_path / "cache.jsonl", key="k")
    assert writer.batches == [(0, [[4, 4, 4, 4], [2, 2, 2]]), (2, [[3, 3], [1]])]
    assert [ids[0] for ids, _ in responses] == [1, 3, 2, 1, 4]
    assert responses[0] == responses[3]


def test_asking_again_reads_the_cache(tmp_path: Path):
    cache = tmp_path / "deep" / "cache.jsonl"
    first = write_missing(PROMPTS, Writer(), cache, key="k")
    again = Writer()
    assert write_missing(PROMPTS, again, cache, key="k") == first
    assert again.batches == []


def test_another_teacher_does_not_get_these_responses(tmp_path: Path):
    """Guards against responses of another model or another temperature for the same prompt: they would be off-policy,
    unnoticed."""
    write_missing(PROMPTS, Writer(), tmp_path / "cache.jsonl", key="k")
    other = Writer(rows=4)
    write_missing(PROMPTS, other, tmp_path / "cache.jsonl", key="other")
    assert len(other.batches) == 1


def test_interrupted_run_goes_on_where_it_stopped_with_the_same_numbers(tmp_path: Path):
    """Ctrl-C may lose only the batch in progress. The numbers are the keys of the noise, so a resumed run must use the
    same ones."""
    undisturbed = write_missing(PROMPTS, Writer(rows=1), tmp_path / "whole.jsonl", key="k")
    cache = tmp_path / "cache.jsonl"
    with pytest.raises(KeyboardInterrupt):
        write_missing(PROMPTS, Writer(break_at=2, rows=1), cache, key="k")
    assert len(cache.read_text().splitlines()) == 2
    writer = Writer(rows=1)
    assert write_missing(PROMPTS, writer, cache, key="k") == undisturbed
    assert [first for first, _ in writer.batches] == [2, 3]


@dataclass(frozen=True)
class Threads(Processes):
    """Processes that are simulated by threads."""

    barrier: Barrier = field(default_factory=lambda: Barrier(1))
    said: dict[int, Any] = field(default_factory=dict)

    def gather(self, value: Any) -> list[Any]:
        self.said[self.index] = value
        self.barrier.wait(timeout=20)
        found = [self.said[i] for i in range(self.number)]
        self.barrier.wait(timeout=20)
        return found


def write_by(number: int, cache: Path) -> tuple[list[list[Written]], list[Writer]]:
    """The responses that each of `number` processes gets, and the writers of all."""
    writers, barrier, said = [Writer(rows=1) for _ in range(number)], Barrier(number), {}

    def one(index: int) -> list[Written]:
        threads = Threads(number, index, barrier, said)
        return write_missing(PROMPTS, writers[index], cache, key="k", processes=threads)

    with ThreadPoolExecutor(number) as pool:
        return list(pool.map(one, range(number))), writers


def test_several_processes_share_out_what_is_missing(tmp_path: Path):
    """Each prompt is answered once, with the number that a single process would give it, and every process gets all
    answers. A later run with another number of processes finds them."""
    alone = write_missing(PROMPTS, Writer(), tmp_path / "alone.jsonl", key="k")
    cache = tmp_path / "cache.jsonl"
    with pytest.raises(KeyboardInterrupt):
        write_missing(PROMPTS, Writer(break_at=1, rows=1), cache, key="k")
    found, writers = write_by(2, cache)
    assert found == [alone, alone]
    assert [[number for number, _ in writer.batches] for writer in writers] == [[1, 3], [2]]
    found, writers = write_by(3, cache)
    assert found == [alone] * 3 and not any(writer.batches for writer in writers)


@pytest.mark.parametrize("lost", [1, 5, 40])
def test_torn_last_line_is_written_again(tmp_path: Path, lost: int):
    """An incomplete last line, even if only its line break is missing, must be cut off. Otherwise the next line is
    appended to it."""
    cache = tmp_path / "cache.jsonl"
    first = write_missing(PROMPTS, Writer(), cache, key="k")
    whole = cache.read_bytes()
    cache.write_bytes(whole[:-lost])
    writer = Writer()
    assert write_missing(PROMPTS, writer, cache, key="k") == first
    assert [prompts for _, prompts in writer.batches] == [[[1]]]
    assert cache.read_bytes() == whole


def test_damaged_cache_is_named(tmp_path: Path):
    """Skipping a damaged line in the middle would hide a broken disk or another program's file."""
    cache = tmp_path / "cache.jsonl"
    write_missing(PROMPTS, Writer(), cache, key="k")
    lines = cache.read_text().splitlines()
    cache.write_text("\n".join([lines[0], "not a response", *lines[2:]]) + "\n")
    with pytest.raises(DataError, match=r"cache.jsonl, line 2: not a cached response .*delete the file"):
        write_missing(PROMPTS, Writer(), cache, key="k")


def test_cache_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path):
    """Minutes of generation must not be lost because the first write fails."""
    (tmp_path / "file").write_text("in the way")
    writer = Writer()
    for cache in (tmp_path / "file" / "cache.jsonl", tmp_path):
        with pytest.raises(OutputError, match="cannot read the responses in"):
            write_missing(PROMPTS, writer, cache, key="k")
    assert writer.batches == []


def test_disk_that_fills_keeps_the_batches_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """When the user frees space and runs again, only what was not on disk is generated again."""
    cache, fsync, calls = tmp_path / "cache.jsonl", os.fsync, []

    def full_at_the_second(file: int) -> None:
        calls.append(file)
        if len(calls) == 2:
            os.ftruncate(file, os.fstat(file).st_size - 7)
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(file)

    monkeypatch.setattr(os, "fsync", full_at_the_second)
    with pytest.raises(OutputError, match=r"cannot write responses to .*: No space left on device; free space"):
        write_missing(PROMPTS, Writer(rows=1), cache, key="k")
    writer = Writer(rows=1)
    write_missing(PROMPTS, writer, cache, key="k")
    assert [prompts for _, prompts in writer.batches] == [[[2, 2, 2]], [[3, 3]], [[1]]]


def test_progress_counts_different_prompts_from_what_is_there(tmp_path: Path):
    cache = tmp_path / "cache.jsonl"
    write_missing(PROMPTS[:1], Writer(), cache, key="k")
    seen: list[tuple[int, int, int]] = []
    written = write_missing(PROMPTS, Writer(), cache, key="k", progress=lambda *counts: seen.append(counts))
    assert [counts[:2] for counts in seen] == [(1, 4), (3, 4), (4, 4)]
    fresh = {tuple(prompt): len(ids) for prompt, (ids, _) in zip(PROMPTS, written, strict=True)}
    assert seen[0][2] == 0 and seen[-1][2] == sum(fresh.values()) - fresh[tuple(PROMPTS[0])]


def test_unended_response_keeps_its_flag(tmp_path: Path):
    cache = tmp_path / "cache.jsonl"
    for _ in range(2):
        assert write_missing([[1]], lambda *_: [{0: ([5, 6], False)}], cache, key="k") == [([5, 6], False)]
    assert json.loads(cache.read_text())["ended"] is False


def test_teacher_key_holds_what_decides_a_response_and_no_more():
    """Under a new seed, cached greedy responses stay valid, and sampled ones do not."""

    def key(mode: Literal["greedy", "sampled"] = "greedy", model="m", tokens=8, temperature=1.0, seed=0) -> str:
        return teacher_key(model, mode=mode, max_new_tokens=tokens, temperature=temperature, seed=seed)

    assert key() == key(seed=1, temperature=0.5)
    sampled = [key("sampled"), key("sampled", seed=1), key("sampled", temperature=0.5)]
    assert len({key(), key(model="n"), key(tokens=9), *sampled}) == 6


def test_responses_are_cached_under_all_that_decides_them(tmp_path: Path):
    """A run with a longer max_length must not find the responses that a shorter one cut, nor a run with the model itself those
    of its quantized weights."""
    tokenizer = tiny_tokenizer(60)
    settings = BloomConfig(vocab_size=60, hidden_size=32, n_layer=2, n_head=2, initializer_range=0.3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = BloomForCausalLM(settings).eval()  # ALiBi: its positions have no limit

    def lengths(work: Path, **options: Any) -> list[int]:
        config = make_config(model="m", data="d", output="o", responses="greedy", max_new_tokens=20, **options)
        write = response_writer(model, tokenizer, 61, [], config, work, "hash", Console(quiet=True))
        return [len(ids) for ids, _ in write([[5, 6], [7, 8, 9]])]

    lengths(tmp_path, max_length=8)
    assert lengths(tmp_path, max_length=64) == [20, 20]
    cached = (tmp_path / "responses.jsonl").read_text().count("\n")
    lengths(tmp_path, quantize="int8")
    assert (tmp_path / "responses.jsonl").read_text().count("\n") == cached + 2
