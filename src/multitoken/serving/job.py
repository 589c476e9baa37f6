"""A running API request: its rows in the engine, their pieces as they arrive, and the clean-up if the client leaves."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from functools import partial

from .driver import Driver, Piece, RowJob


class ClientGone(Exception):
    """The client has disconnected: nobody waits for the answer any more."""


class Job:
    """rows: not yet submitted to the driver. end: deadline for the whole answer, in the event loop's time. Use a job
    only in its event loop, and always `close` it."""

    def __init__(self, driver: Driver, rows: Sequence[RowJob], end: float) -> None:
        self._driver = driver
        self.end = end
        self._rows = list(rows)
        self._pieces: asyncio.Queue[tuple[int, Piece] | None] = asyncio.Queue()
        self._left = len(self._rows)
        for i, row in enumerate(self._rows):
            row.put = partial(self._put, i)
        driver.submit(self._rows)

    def _put(self, index: int, piece: Piece) -> None:
        self._pieces.put_nowait((index, piece))

    def leave(self) -> None:
        """The client has disconnected: `pieces` raises `ClientGone`, and the rows are cancelled."""
        self._pieces.put_nowait(None)
        self.close()

    def close(self) -> None:
        """Cancel the rows that are still running."""
        if self._left:
            self._left = 0
            self._driver.cancel(self._rows)

    async def pieces(self) -> AsyncIterator[list[tuple[int, Piece]]]:
        """Yield lists of (row, piece), each with all pieces that have arrived. Raises the error of a row that fails,
        `ClientGone` if the client disconnects, and `TimeoutError` at the deadline."""
        while self._left:
            async with asyncio.timeout_at(self.end):
                found = [await self._pieces.get()]
            while not self._pieces.empty():
                found.append(self._pieces.get_nowait())
            batch = []
            for item in found:
                if item is None:
                    raise ClientGone
                if item[1].error is not None:
                    raise item[1].error
                batch.append(item)
            self._left -= sum(piece.is_last for _, piece in batch)
            yield batch
