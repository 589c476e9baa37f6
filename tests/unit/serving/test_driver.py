"""The thread that owns the engine: requests, failures and the end."""

import queue
import time
from typing import Any

import pytest

from multitoken.decoding import Decoder, Exact, NextToken
from multitoken.serving.driver import Driver, Piece, RowJob
from multitoken.serving.text import AnswerText
from tests.tiny import tiny_llama, tiny_tokenizer

TOKENIZER = tiny_tokenizer(60, extra=["<MTP>"])
MASK = 59


@pytest.fixture()
def decoder() -> Decoder:
    return Decoder(tiny_llama(TOKENIZER, max_position_embeddings=4096), mask_id=MASK, trained_k=4)


class Harness:
    """A driver whose pieces are put into a queue."""

    def __init__(self, decoder: Decoder, **options: Any) -> None:
        self.engine = decoder.engine(**options)
        self.found: queue.Queue[tuple[RowJob, Piece]] = queue.Queue()
        self.driver = Driver(self.engine, lambda pieces: [self.found.put(each) for each in pieces] and None)
        self.decoder = decoder

    def job(self, prompt: list[int], new: int = 12, policy: Any = None) -> RowJob:
        request = self.decoder.request(prompt, policy=policy or Exact(0.0), max_new_tokens=new)
        return RowJob(request, AnswerText(TOKENIZER), lambda piece: None)

    def answers(self, *jobs: RowJob) -> list[list[int] | Exception]:
        """The tokens of each job, or its error."""
        tokens: dict[int, list[int]] = {id(job): [] for job in jobs}
        ended: dict[int, Any] = {}
        while len(ended) < len(jobs):
            job, piece = self.found.get(timeout=20)
            if id(job) not in tokens:
                continue
            tokens[id(job)] += piece.token_ids
            if piece.is_last:
                ended[id(job)] = piece.error or tokens[id(job)]
        return [ended[id(job)] for job in jobs]


@pytest.fixture()
def harness(decoder: Decoder):
    harness = Harness(decoder, max_rows=3)
    harness.driver.start()
    yield harness
    harness.driver.stop(RuntimeError("the test is over"))
    assert not harness.driver.is_alive


def alone(decoder: Decoder, job: RowJob) -> list[int]:
    engine = decoder.engine()
    engine.add(job.request)
    return [token for chunk in engine.run() for token in chunk.token_ids]


def test_rows_that_join_at_any_time_equal_each_alone(decoder: Decoder) -> None:
    """More rows than the batch has lines, under two policies, submitted while others are being decoded."""
    harness = Harness(decoder, max_rows=3)
    jobs = [harness.job([4 + i, 9, 5], 5 + 7 * i % 20, [Exact(0.0), NextToken()][i % 2]) for i in range(12)]
    expected = [alone(decoder, job) for job in jobs]
    harness.driver.start()
    for job in jobs:
        harness.driver.submit([job])
        time.sleep(0.002)
    assert harness.answers(*jobs) == expected
    harness.driver.stop(RuntimeError())


def test_a_cancelled_row_is_silent_and_its_line_free(harness: Harness) -> None:
    leaves, stays = harness.job([5, 6], 3000), harness.job([7, 8], 30)
    harness.driver.submit([leaves, stays])
    harness.found.get(timeout=20)
    harness.driver.cancel([leaves])
    harness.driver.cancel([leaves])  # a second time, when it is already gone
    harness.answers(stays)
    after = harness.job([4], 3)
    harness.driver.submit([after])
    harness.answers(after)
    assert harness.engine.running == 0 and not harness.engine.busy
    while not harness.found.empty():
        assert harness.found.get()[0] is not leaves


def test_a_pass_that_raises_loses_its_rows_alone(harness: Harness, decoder: Decoder, monkeypatch) -> None:
    """An out-of-memory error must not end the thread. Requests that wait, and later ones, are answered as usual."""
    expected = alone(decoder, harness.job([4, 5, 6]))
    forward, trouble = decoder.model.forward, [2]

    def sometimes(*args: Any, **kwargs: Any) -> Any:
        trouble[0] -= 1
        if trouble[0] == 0:
            raise MemoryError("no more")
        return forward(*args, **kwargs)

    monkeypatch.setattr(decoder.model, "forward", sometimes)
    jobs = [harness.job([4, 5, 6]) for _ in range(5)]
    harness.driver.submit(jobs)
    found = harness.answers(*jobs)
    assert [type(each) for each in found[:3]] == [MemoryError] * 3
    assert found[3:] == [expected, expected]
    assert harness.driver.trouble is None


def test_a_row_that_does_not_fit_is_told_even_if_the_pass_raises(decoder: Decoder, monkeypatch) -> None:
    """Otherwise its client waits until the time limit: there may be no further step that would report it."""

    def fails(*args: Any, **kwargs: Any) -> Any:
        raise MemoryError("no more")

    monkeypatch.setattr(decoder.model, "forward", fails)
    harness = Harness(decoder, max_rows=3, max_cache_bytes=300_000)
    large, small = harness.job([4] * 3000, 900), harness.job([4, 5])
    harness.driver.submit([large, small])
    harness.driver.start()
    too_large, lost = harness.answers(large, small)
    assert "more than its limit" in str(too_large) and isinstance(lost, MemoryError)
    harness.driver.stop(RuntimeError())


def test_a_row_of_nan_fails_alone(harness: Harness, decoder: Decoder) -> None:
    expected = alone(decoder, harness.job([4, 5, 6]))
    decoder.model.get_input_embeddings().weight.data[50] = float("nan")
    bad, good = harness.job([4, 50, 6]), harness.job([4, 5, 6])
    harness.driver.submit([bad, good])
    error, tokens = harness.answers(bad, good)
    assert "not numbers" in str(error) and tokens == expected
    again = harness.job([4, 5, 6])  # in the line where the NaN was
    harness.driver.submit([again])
    assert harness.answers(again) == [expected]


def test_stop_fails_what_is_left(decoder: Decoder) -> None:
    harness = Harness(decoder, max_rows=1)
    harness.driver.start()
    jobs = [harness.job([4, 5], 3000), harness.job([6, 7], 3000)]
    harness.driver.submit(jobs)
    harness.found.get(timeout=20)
    harness.driver.stop(RuntimeError("closing time"))
    assert [str(error) for error in harness.answers(*jobs)] == ["closing time"] * 2
