"""The progress bar of a training run: share done, steps, loss, tokens per second, time left."""

from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Column
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from multitoken.progress import Lines

from .clock import Clock


class TrainingBar(TrainerCallback):
    """Draws the bar, and leaves one line at the end. Without a terminal it prints one line per minute."""

    def __init__(self, clock: Clock, console: Console) -> None:
        self._clock, self._lines = clock, Lines(console)
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
        # A narrow terminal cuts off the end, so the least important parts come last.
        parts = [f"step {state.global_step}", f"{int(left) // 60}:{int(left) % 60:02d} left"]
        if self._logs:
            parts.append(f"loss {self._logs['loss']:.3f}")
            parts.append(f"{self._logs['tokens_per_second']:,.0f} tokens/s")
            parts.append(f"{self._logs['accepted']:.2f} right per block")
        assert self._task is not None
        status = " · ".join(parts)
        self._progress.update(self._task, completed=done, status=status)
        self._lines.say(f"training {done:.0%} · {status}")

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
