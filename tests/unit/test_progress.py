"""Progress is a bar on a terminal and lines in a log."""

import io

from rich.console import Console

from multitoken.progress import Lines, counting_bar


def log(*, terminal: bool) -> tuple[Console, io.StringIO]:
    text = io.StringIO()
    return Console(file=text, force_terminal=terminal, width=100), text


def test_a_log_is_told_once_a_minute() -> None:
    """The log of a long run (under nohup, for example) shows that it goes on, and is not flooded with lines."""
    now, (console, text) = [0.0], log(terminal=False)
    lines = Lines(console, lambda: now[0])
    for now[0] in (1.0, 59.0, 60.0, 61.0, 119.0, 125.0):
        lines.say(f"at {now[0]:.0f}")
    assert text.getvalue() == "at 60\nat 125\n"


def test_a_terminal_has_its_bar() -> None:
    now, (console, text) = [0.0], log(terminal=True)
    lines = Lines(console, lambda: now[0])
    now[0] = 100.0
    lines.say("never")
    assert text.getvalue() == ""


def test_a_counting_bar_says_how_fast_tokens_are_written() -> None:
    now, (console, text) = [0.0], log(terminal=False)
    with counting_bar(console, "writing", clock=lambda: now[0]) as tell:
        tell(0, 5000, 0)
        now[0] = 120.0
        tell(2000, 5000, 60_000)
        tell(2001, 5000, 60_001)
    assert text.getvalue().splitlines()[0] == "writing: 2,000 of 5,000, 2 min, 500 tokens/s"
    assert text.getvalue().count("2 min") == 1
