"""The race: one prompt decoded under several policies, shown side by side, each chunk in its own colour.

The runs are made one after the other and timed. They are then shown together, slowed down by a factor that is printed.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.columns import Columns
from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.text import Text

from multitoken.decoding import Chunk, Policy
from multitoken.evaluation.report import RaceEntry
from multitoken.models.generation import Generation
from multitoken.models.model import Model

_COLOURS = ("bright_cyan", "bright_yellow", "bright_green", "bright_magenta", "bright_blue", "bright_red")
_NARROWEST, _WIDEST = 24, 44  # columns of a runner's panel
_SHOWN_SECONDS = 4.0  # how long the slowest runner takes on the screen


@dataclass(frozen=True)
class Lap:
    """One answer, with the time at which each chunk arrived, in seconds from the start."""

    label: str
    chunks: tuple[Chunk, ...]
    moments: tuple[float, ...]

    @property
    def seconds(self) -> float:
        return self.moments[-1]

    def generation(self) -> Generation:
        return Generation.of(self.chunks, self.seconds)


def run_lap(label: str, model: Model, prompt: str, policy: Policy, max_new_tokens: int) -> Lap:
    """Decode once without timing (warm-up), then once with timing."""
    list(model.stream(prompt, policy=policy, max_new_tokens=max_new_tokens, adaptive=False))
    chunks, moments = [], []
    started = time.perf_counter()
    for chunk in model.stream(prompt, policy=policy, max_new_tokens=max_new_tokens, adaptive=False):
        chunks.append(chunk)
        moments.append(time.perf_counter() - started)
    return Lap(label, tuple(chunks), tuple(moments))


def race(
    runners: Mapping[str, tuple[Model, Policy]], prompts: Sequence[str], console: Console, *, max_new_tokens: int
) -> list[RaceEntry]:
    """Run and show all prompts. Returns the entries for the report."""
    entries = []
    for prompt in prompts:
        laps = [run_lap(label, model, prompt, policy, max_new_tokens) for label, (model, policy) in runners.items()]
        console.print(f"\n[bold]{prompt}[/bold]")
        _show(laps, console)
        entries += [RaceEntry(prompt, lap.label, lap.generation()) for lap in laps]
    return entries


def _show(laps: Sequence[Lap], console: Console) -> None:
    slowest = max(lap.seconds for lap in laps)
    if not console.is_terminal:
        console.print(_panels(laps, slowest, console.width))
        return
    slowdown = max(1.0, _SHOWN_SECONDS / slowest)
    with Live(console=console, refresh_per_second=20) as live:
        started = time.perf_counter()
        now = 0.0
        while now < slowest:
            now = (time.perf_counter() - started) / slowdown
            live.update(_panels(laps, now, console.width))
            time.sleep(0.04)
    if slowdown > 1.05:
        console.print(f"[dim]shown {slowdown:.1f} times slower than measured[/dim]")


def _panels(laps: Sequence[Lap], now: float, columns: int) -> Columns:
    width = max(_NARROWEST, min(_WIDEST, columns // len(laps) - 1))
    return Columns([_panel(lap, now, width) for lap in laps], width=width)


def _panel(lap: Lap, now: float, width: int) -> Panel:
    """What the lap has written by `now`, one colour per chunk, and its numbers once it is finished."""
    text = Text()
    shown = [c for c, moment in zip(lap.chunks, lap.moments, strict=True) if moment <= now]
    for i, chunk in enumerate(shown):
        text.append(chunk.text, style=_COLOURS[i % len(_COLOURS)])
    if len(shown) == len(lap.chunks):
        generation = lap.generation()
        subtitle = f"{lap.seconds:.2f} s · {generation.tokens_per_step:.1f}/step"
    else:
        subtitle = f"{len(shown)} steps"
    return Panel(text, title=lap.label, subtitle=subtitle, width=width)
