"""Bars: for training (share done, steps, loss, tokens a second, time left), and for whatever can be counted."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .clock import Clock


class TrainingBar(TrainerCallback):
    """Draws the bar; leaves one line behind."""

    def __init__(self, clock: Clock, console: Console) -> None:
        self._clock = clock
        self._progress = Progress(
            TextColumn("[bold]training[/bold]", table_column=Column(min_width=8)),
            BarColumn(8),
            TextColumn("{task.percentage:>3.0f}%  {task.fields[status]}"),
            console=console,
            refresh_per_second=4,
        )
        self._task: TaskID | None = None
        self._logs: dict[str, Any] = {}

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._task = self._progress.add_task("train", total=1.0, status="first step")
        self._progress.start()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        done = self._clock.progress()
        left = self._clock.seconds * (1 - done) / max(done, 1e-6)
        # What a narrow terminal cuts off stands last.
        parts = [f"step {state.global_step}", f"{int(left) // 60}:{int(left) % 60:02d} left"]
        if self._logs:
            parts.append(f"loss {self._logs['loss']:.3f}")
            parts.append(f"{self._logs['tokens_per_second']:,.0f} tokens/s")
            parts.append(f"{self._logs['accepted']:.2f} right per block")
        assert self._task is not None
        self._progress.update(self._task, completed=done, status=" · ".join(parts))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        if logs and "loss" in logs:
            self._logs = {**logs, "loss": float(logs["loss"])}

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.close()

    def close(self) -> None:
        """Stop drawing; also called when training is interrupted."""
        self._progress.stop()


@contextmanager
def counting_bar(console: Console, what: str, total: int) -> Iterator[Callable[[int, int], None]]:
    """A bar that is told `(done, total)`."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(what, total=total)
        yield lambda done, total: progress.update(task, completed=done, total=total)
