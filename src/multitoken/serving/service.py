"""Connects HTTP to the engine: admission, preparation, answers and stream events for one model."""

import asyncio
import json
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing

from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from multitoken.decoding.failures import DecodingError
from multitoken.models.model import Model

from .driver import Driver, Piece, RowJob
from .errors import ApiError
from .intake import Intake, Preparer
from .job import ClientGone, Job
from .options import ServeOptions
from .protocol import GenerationBody
from .text import AnswerText
from .wire import Wire, wire_of

_GONE = 499  # the client has closed the connection: nobody reads this
_READING = 5.0  # seconds after the deadline in which a client may still read a stream


class Service:
    """Belongs to one event loop, to which it passes the driver's pieces."""

    def __init__(self, model: Model, options: ServeOptions) -> None:
        self.model = model
        self.options = options
        self.preparer = Preparer(model, options)
        self.driver = Driver(model.decoder.engine(adaptive=True, max_rows=options.max_rows), self._deliver)
        self.metrics = self.driver.metrics
        self.created = int(time.time())
        self._loop: asyncio.AbstractEventLoop | None = None
        self._preparing = ThreadPoolExecutor(1, "multitoken prepare")
        self._held = 0
        self._draining = False

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.driver.start()

    def health(self) -> dict[str, object]:
        """`status` is "ok" while requests are accepted. `trouble` is the error of the last step, if it raised one."""
        status = "stopped" if not self.driver.is_alive else "shutting down" if self._draining else "ok"
        return {"status": status, "model": self.options.name, "rows": self._held, "trouble": self.driver.trouble}

    async def drain(self) -> None:
        """Accept no more requests and give the running ones the grace period. Those that are not finished then fail."""
        if self._draining:
            return
        self._draining = True
        end = time.monotonic() + self.options.grace
        while self._held and time.monotonic() < end:
            await asyncio.sleep(0.02)
        await asyncio.to_thread(self.driver.stop, ApiError(503, "the server is shutting down"))
        self._preparing.shutdown(wait=False)

    def _deliver(self, pieces: list[tuple[RowJob, Piece]]) -> None:
        assert self._loop is not None
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(_hand_out, pieces)

    async def answer(self, body: GenerationBody, receive: Receive) -> Response:
        """The response to a body: an answer, or a stream that begins with the first token."""
        rows = self.preparer.rows_of(body)
        place = self._place(rows)
        try:
            intake = await asyncio.get_running_loop().run_in_executor(self._preparing, self.preparer.prepare, body)
            work = _Work(self, body, intake, receive, place)
        except BaseException:
            place.free()
            raise
        return await work.respond()

    def _place(self, rows: int) -> "_Place":
        if self._draining:
            raise ApiError(503, "the server is shutting down", headers={"Retry-After": "5"})
        if not self.driver.is_alive:
            raise ApiError(503, "the engine has stopped; restart the server")
        if self._held + rows > self.options.most:
            raise ApiError(
                429,
                f"the server is busy: {self._held} of {self.options.most} places are taken; try again later",
                code="queue_full",
                headers={"Retry-After": str(self._wait())},
            )
        return _Place(self, rows)

    def _wait(self) -> int:
        """Estimated seconds until a place is free: the mean duration of a row."""
        seconds, rows = self.metrics.whole.total()
        return max(1, min(60, math.ceil(seconds / rows))) if rows else 1


class _Place:
    """The places of one request's rows in the server, until they are freed."""

    def __init__(self, service: Service, rows: int) -> None:
        self._service, self._rows = service, rows
        service._held += rows

    def free(self) -> None:
        self._service._held -= self._rows
        self._rows = 0


class _Work:
    """One request from its rows to the last byte of its response."""

    def __init__(self, service: Service, body: GenerationBody, intake: Intake, receive: Receive, place: _Place) -> None:
        self._service = service
        self._body = body
        self._place = place
        tokenizer = service.model.tokenizer
        self._wire: Wire = wire_of(body, intake.prompt_tokens, len(intake.rows), tokenizer)
        by_token = bool(body.stops or body.mtp.confidences or body.top is not None)
        self._job = Job(
            service.driver,
            [
                RowJob(request, AnswerText(tokenizer, body.stops), _nowhere, by_token, body.top)
                for request in intake.rows
            ],
            asyncio.get_running_loop().time() + service.options.timeout,
        )
        self._watch = asyncio.create_task(_leave_when_gone(receive, self._job))

    @property
    def end(self) -> float:
        return self._job.end

    def close(self) -> None:
        self._job.close()
        self._watch.cancel()
        self._place.free()

    async def respond(self) -> Response:
        pieces = self._job.pieces()
        try:
            first = await anext(pieces)
            if self._body.stream:
                return _EventStream(self._events(first, pieces), self)
            self._add(first)
            async for batch in pieces:
                self._add(batch)
            self.close()
            return JSONResponse(self._wire.answer())
        except Exception as error:
            self.close()
            raise _as_api_error(error, self._service.options) from error
        except BaseException:  # cancelled
            self.close()
            raise

    def _add(self, batch: list[tuple[int, Piece]]) -> None:
        for index, piece in batch:
            self._wire.rows[index].add(piece)

    async def _events(
        self, first: list[tuple[int, Piece]], pieces: AsyncIterator[list[tuple[int, Piece]]]
    ) -> AsyncGenerator[bytes]:
        """All pieces that have arrived are sent in one write."""
        try:
            yield self._lines(first)
            async for batch in pieces:
                yield self._lines(batch)
            last = self._wire.last_event()
            yield (_line(last) if last else b"") + b"data: [DONE]\n\n"
        except ClientGone:
            raise
        except Exception as error:
            yield _line(_as_api_error(error, self._service.options).body())

    def _lines(self, batch: list[tuple[int, Piece]]) -> bytes:
        return b"".join(_line(self._wire.event(index, piece)) for index, piece in batch)


class _EventStream(Response):
    """Server-sent events. Closes its `_Work` at the end in every case."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes], work: _Work) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events, self._work = events, work

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async with asyncio.timeout_at(self._work.end + _READING), aclosing(self._events) as events:
                async for event in events:
                    await send({"type": "http.response.body", "body": event, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        except (ClientGone, TimeoutError):  # the client has disconnected, or does not read
            pass
        finally:
            self._work.close()


def _hand_out(pieces: list[tuple[RowJob, Piece]]) -> None:
    for job, piece in pieces:
        job.put(piece)


def _nowhere(piece: Piece) -> None:
    """A placeholder for `put` until the row has a job."""


async def _leave_when_gone(receive: Receive, job: Job) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    job.leave()


def _line(event: dict) -> bytes:
    return b"data: " + json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def _as_api_error(error: Exception, options: ServeOptions) -> ApiError:
    if isinstance(error, TimeoutError):
        return ApiError(504, f"the answer was not complete after {options.timeout:g} seconds")
    if isinstance(error, ClientGone):
        return ApiError(_GONE, "the client has disconnected")
    if isinstance(error, DecodingError):
        return ApiError(500, str(error))
    if isinstance(error, ApiError):
        return error
    return ApiError(500, f"the forward pass failed: {type(error).__name__}: {error}")
