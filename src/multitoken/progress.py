"""How far long work is: a bar on a terminal, a line a minute in logs and pipes, where no bar can be drawn."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_EVERY = 60.0  # seconds between two lines


class Lines:
    """Says on a console that is no terminal how far the work is, once a minute. On a terminal: nothing, for there is a bar."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self._clock = console, clock
        self._said = clock()

    def say(self, line: str) -> None:
        if self._console.is_terminal or self._clock() - self._said < _EVERY:
            return
        self._said = self._clock()
        self._console.print(line, highlight=False)


@contextmanager
def counting_bar(
    console: Console, what: str, total: int | None = None, clock: Callable[[], float] = time.monotonic
) -> Iterator[Callable[..., None]]:
    """For as long as the block runs; what it yields takes `(done, total)`, and `tokens`, those of this run so far, where they are
    counted."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    lines, started = Lines(console, clock), clock()
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task(what, total=total, rate="")

        def tell(done: int, total: int, tokens: int | None = None) -> None:
            seconds = max(1e-9, clock() - started)
            rate = f"{tokens / seconds:,.0f} tokens/s" if tokens else ""
            progress.update(bar, completed=done, total=total, rate=rate)
            lines.say(f"{what}: {done:,} of {total:,}, {seconds / 60:.0f} min" + (f", {rate}" if rate else ""))

        yield tell
