"""One thread owns the engine. Between steps it takes orders (add, cancel, stop). After a step it delivers the new text.

Nothing else in the server uses the engine or runs the model, because a gated adapter gets its mask positions from the
pass that is running.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from multitoken.decoding.engine import Engine
from multitoken.decoding.records import Chunk
from multitoken.decoding.row import Request

from .metrics import Metrics
from .text import AnswerText

_LOWEST = -9999.0  # the lowest logprob that is reported: JSON has no infinity


@dataclass(frozen=True)
class TokenLogprob:
    """The model's own log probabilities of a token and of the likeliest ones at its place, before any logits processor."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Piece:
    """What one forward pass wrote for one row, or the error. `texts`: one per token, if the row asks for them."""

    text: str = ""
    token_ids: tuple[int, ...] = ()
    confidences: tuple[float, ...] = ()
    finish: Literal["stop", "length"] | None = None
    texts: tuple[str, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    error: Exception | None = None

    @property
    def is_last(self) -> bool:
        return self.finish is not None or self.error is not None


@dataclass(eq=False)
class RowJob:
    """A row of an API request. `by_token`: whether pieces carry the text of each token. `top`: how many likeliest
    tokens to report with the logprobs, None for no logprobs."""

    request: Request
    text: AnswerText
    put: Callable[[Piece], None]
    by_token: bool = False
    top: int | None = None
    number: int = -1
    begun: float = field(default_factory=time.perf_counter)
    has_begun: bool = False


Deliver = Callable[[list[tuple[RowJob, Piece]]], None]


class Driver:
    """deliver: called in the driver's thread with the pieces of a step. It must pass each to the `put` of its row."""

    def __init__(self, engine: Engine, deliver: Deliver) -> None:
        self._engine = engine
        self._deliver = deliver
        self._orders: list[Callable[[], None]] = []
        self._wake = threading.Condition()
        self._jobs: dict[int, RowJob] = {}
        self._stopped: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="multitoken engine", daemon=True)
        self.metrics = Metrics(lambda: engine.running, lambda: max(0, len(self._jobs) - engine.running))
        self.trouble: str | None = None  # the error of the last step; None after a step that succeeds

    def start(self) -> None:
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def submit(self, jobs: Sequence[RowJob]) -> None:
        """Add rows before the next step."""
        self._order(partial(self._add, jobs))

    def cancel(self, jobs: Sequence[RowJob]) -> None:
        """Remove rows before the next step, if they have not left yet. They get no further piece."""
        self._order(partial(self._drop, jobs))

    def stop(self, reason: Exception) -> None:
        """Fail the remaining rows with this reason and end the thread."""
        self._order(partial(self._stop, reason))
        if self._thread.is_alive():
            self._thread.join()

    def _order(self, order: Callable[[], None]) -> None:
        with self._wake:
            self._orders.append(order)
            self._wake.notify()

    def _run(self) -> None:
        while self._stopped is None:
            with self._wake:
                while not self._orders and not self._engine.busy:
                    self._wake.wait()
                orders, self._orders = self._orders, []
            for order in orders:
                order()
            if self._stopped is None and self._engine.busy:
                self._step()

    def _add(self, jobs: Sequence[RowJob]) -> None:
        for job in jobs:
            job.number = self._engine.add(job.request)
            self._jobs[job.number] = job
            self.metrics.prompt_tokens.add(len(job.request.prompt))

    def _drop(self, jobs: Sequence[RowJob]) -> None:
        for job in jobs:
            if self._jobs.pop(job.number, None) is not None:
                self._engine.cancel(job.number)

    def _stop(self, reason: Exception) -> None:
        self._stopped = reason
        self._fail([*self._jobs], reason)

    def _step(self) -> None:
        begun = time.perf_counter()
        try:
            chunks = self._engine.step()
        except Exception as error:  # such as out of memory: rows in the step are lost, waiting rows are not
            self.trouble = f"{type(error).__name__}: {error}"
            self._fail(self._engine.recover(), error)
            self._fail_single_rows()  # one that did not fit, in the same step
            return
        self.trouble = None
        self.metrics.step.observe(time.perf_counter() - begun)
        pieces = []
        for chunk in chunks:
            job = self._jobs[chunk.row]
            try:
                piece = _piece(job, chunk)
            except Exception as error:  # such as one from the tokenizer: only this row fails
                piece = Piece(error=error)
            self._count(job, piece)
            pieces.append((job, piece))
            if piece.is_last:
                self._drop([job])
        if pieces:
            self._deliver(pieces)
        self._fail_single_rows()

    def _fail_single_rows(self) -> None:
        while self._engine.failed:
            number, error = self._engine.failed.popitem()
            self._fail([number], error)

    def _fail(self, numbers: Sequence[int], error: Exception) -> None:
        pieces = [(self._jobs.pop(number), Piece(error=error)) for number in numbers if number in self._jobs]
        self.metrics.failures.add(len(pieces))
        if pieces:
            self._deliver(pieces)

    def _count(self, job: RowJob, piece: Piece) -> None:
        policy, now, metrics = job.request.policy.name, time.perf_counter(), self.metrics
        metrics.tokens.add(len(piece.token_ids), policy)
        metrics.passes.add(1, policy)
        if job.has_begun:
            metrics.accepted.observe(len(piece.token_ids), policy)
        else:
            job.has_begun = True
            metrics.first.observe(now - job.begun)
        if piece.is_last:
            metrics.whole.observe(now - job.begun)


def _piece(job: RowJob, chunk: Chunk) -> Piece:
    """The chunk as text, cut after the token that completes a stop string."""
    texts, tokens = [], chunk.token_ids
    if job.by_token:
        for token in tokens:
            texts.append(job.text.push([token]))
            if job.text.stopped:
                break
        tokens = tokens[: len(texts)]
    else:
        texts.append(job.text.push(tokens))
    finish = None if chunk.finish is None else "length" if chunk.finish == "length" else "stop"
    if job.text.stopped or finish:
        texts[-1] += job.text.end()
    if job.text.stopped:
        finish = "stop"
    return Piece(
        "".join(texts),
        tokens,
        chunk.confidences[: len(tokens)],
        finish,
        tuple(texts) if job.by_token else (),
        _logprobs(job.top, tokens, chunk) if job.top is not None else (),
    )


def _logprobs(top: int, tokens: Sequence[int], chunk: Chunk) -> tuple[TokenLogprob, ...]:
    assert chunk.logits is not None, "a row that reports logprobs keeps its scores"
    found = []
    for token, row in zip(tokens, chunk.logits[: len(tokens)].log_softmax(-1), strict=True):
        values, ids = row.topk(min(top, len(row)))
        pairs = zip(ids.tolist(), values.clamp(min=_LOWEST).tolist(), strict=True)
        found.append(TokenLogprob(token, max(_LOWEST, float(row[token])), tuple(pairs)))
    return tuple(found)
