"""Progress of long work: a bar on a terminal; in logs and pipes, where no bar can be drawn, one line per minute."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_EVERY = 60.0  # seconds between two lines


class Lines:
    """Prints the progress once a minute on a console that is not a terminal. On a terminal it prints nothing: there is a bar."""

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
    """Show a progress bar while the block runs. It yields a function of `(done, total)` that updates the bar, and of `tokens` as
    well where they are counted: those of this run so far."""
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
