"""`multitoken adapt --dry-run`: what a run would do, and the time and memory it would need, from a few measured steps.
Nothing is kept."""

import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.optim import Optimizer
from transformers import TrainerCallback

from multitoken.checkpoints.atomic import check_output
from multitoken.config import AdaptConfig
from multitoken.errors import OutOfMemoryError, UsageError

from .adapt import VALIDATIONS, make_trainer, memory_errors
from .clock import Clock, affordable
from .dataset import WriteAll
from .memory import bytes_of, free_memory, peak_memory
from .optimizer import MuonAdamW
from .responses import Written
from .setup import Setup, make_ready, training_arguments
from .stream import StreamOptions

_STEPS = 6  # measured; the first one warms up and is not counted
_RESPONSES = 16  # written to estimate how long all would take
_HEADROOM = 1.1  # for memory fragmentation and longer rows


@dataclass(frozen=True)
class Plan:
    """`memory`: bytes by part, and their measured peak. `why_not`: None if the run fits. If memory ran out before
    a step was done, `memory` is empty and a step took 0 seconds."""

    mask: str
    data: str
    trainable: int
    parameters: int
    memory: dict[str, int]
    free: int
    samples: int
    steps: int
    tokens: int
    seconds_per_step: float
    validations: int  # validation passes on unseen prompts
    seconds_per_validation: float
    seconds_of_responses: float
    why_not: str | None

    @property
    def seconds(self) -> float:
        """Of the run until it is trained: writing the responses, the steps and the validation passes."""
        return (
            self.steps * self.seconds_per_step
            + self.validations * self.seconds_per_validation
            + self.seconds_of_responses
        )


def plan(config: AdaptConfig, console: Console) -> Plan:
    """Prepare a run as `adapt` would, take a few steps and estimate the whole run.

    Raises what `adapt` raises, except where memory runs out: the plan says so.
    """
    check_output(config.output, overwrite=config.overwrite)
    if config.shard:
        raise UsageError("a dry run measures one process with the whole model: leave shard out")
    trial = config.model_copy(
        update={"steps": _STEPS, "minutes": None, "report_to": "none", "patience": None, "evaluate_every": _STEPS}
        # Where blocks grow, the last step has blocks of the full length.
        | {"checkpoint_every": _STEPS + 1, "resume": False, "k_growth": (1 - 1 / _STEPS) * (config.k_growth > 0)}
    )
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        arguments = training_arguments(trial, work)
        arguments.set_save(strategy="no")
        device = arguments.device
        free = free_memory(device)
        sampled = _SampledWriter()
        timer = _Timer()
        why_not = None
        with peak_memory(device) as peak:
            setup = make_ready(trial, work, arguments, console, sampled.around)
            clock = Clock(steps=_STEPS, minutes=None)
            trainer = make_trainer(setup, arguments, clock, [timer])
            try:
                with memory_errors(trial):
                    trainer.train()
            except OutOfMemoryError as error:
                why_not = str(error)
        memory = {} if why_not else _parts(setup, _bare(trainer.optimizer), peak.bytes)
    measured = len(timer.seconds)
    per_step = _typical(timer.seconds, setup.stream, config.k_growth)
    steps, validations = _steps_and_validations(config, per_step, timer.validation)
    if why_not is None and peak.bytes * _HEADROOM > free:
        why_not = f"{peak.bytes / 1e9:.1f} GB were taken, and {free / 1e9:.1f} GB were free: lower batch_size first"
    model = setup.loaded.model
    return Plan(
        mask=setup.way.mask.describe(),
        data=str(setup.data.report),
        trainable=sum(p.numel() for p in setup.way.trained.parameters() if p.requires_grad),
        parameters=sum(p.numel() for p in model.parameters()),
        memory=memory,
        free=free,
        samples=len(setup.data.train),
        steps=steps,
        tokens=round(steps * trainer.tokens / measured) if measured else 0,
        seconds_per_step=per_step,
        validations=validations,
        seconds_per_validation=timer.validation,
        seconds_of_responses=sampled.seconds_of_all,
        why_not=why_not,
    )


def _typical(seconds: list[float], stream: StreamOptions, growth: float) -> float:
    """Seconds per step of the whole run, estimated from the trial's steps without the first one; 0 where there are none.
    If blocks grow, the shorter blocks of the run's first steps count with their share."""
    times = seconds[1:]
    if not times:
        return 0.0
    longest = [stream.longest(i / _STEPS) for i in range(1, len(seconds))]
    if len(set(longest)) < 2:
        return statistics.median(times)
    run = replace(stream, growth=growth)
    slope, start = statistics.linear_regression(longest, times)
    mean = start + slope * statistics.fmean(run.longest(i / 100) for i in range(100))
    return min(max(mean, min(times)), max(times))


def _steps_and_validations(config: AdaptConfig, per_step: float, per_validation: float) -> tuple[int, int]:
    """Steps and validation passes of the whole run. The minutes of a run include both."""
    every, seconds = config.evaluate_every, 60 * (config.minutes or 0.0)
    if not per_step:
        return config.steps or 0, 0
    if every is not None:
        steps = config.steps or max(1, int(seconds / (per_step + per_validation / every)))
        at_the_end = bool(config.steps and steps % every)  # the trainer's own, in runs given in steps
        return steps, steps // every + at_the_end if per_validation else 0
    validations = _affordable_validations(
        seconds or (config.steps or 0) * per_step, per_validation, known=bool(seconds)
    )
    return config.steps or max(1, int((seconds - validations * per_validation) / per_step)), validations


def _affordable_validations(seconds: float, per_validation: float, *, known: bool) -> int:
    """How many validation passes `ValidationSchedule` will request in a run of `seconds`. known: these include the passes' own time."""
    validations = 0
    for part in range(1, VALIDATIONS) if per_validation else ():
        elapsed = seconds * part / VALIDATIONS + (0 if known else validations * per_validation)
        validations += affordable(validations, validations * per_validation, elapsed)
    return validations


def show(plan: Plan, config: AdaptConfig, console: Console) -> None:
    """Print the plan as a table, and a sentence that says whether the run fits."""
    table = Table(title=f"{config.method} adaptation of {config.model}", show_header=False)
    rows = {
        "mask token": plan.mask,
        "data": plan.data,
        "trainable parameters": f"{plan.trainable:,} (the model has {plan.parameters:,})",
    }
    if plan.seconds_per_step:
        passes = plan.steps * config.batch_size * config.gradient_accumulation / plan.samples
        rows |= {
            "steps": f"{plan.steps:,} of {plan.seconds_per_step:.2f} s each, {plan.tokens:,} tokens",
            "passes over the data": f"{passes:.1f}",
            "validation passes": f"{plan.validations} of {plan.seconds_per_validation:.1f} s each",
            "time": f"{_hours(plan.seconds)}, of which {_hours(plan.seconds_of_responses)} for writing responses",
        }
    for name, size in plan.memory.items():
        rows[f"memory: {name}"] = f"{size / 1e6:,.0f} MB"
    rows["memory: free"] = f"{plan.free / 1e6:,.0f} MB"
    for name, value in rows.items():
        table.add_row(name, value)
    console.print(table)
    console.print(f"It does not fit: {plan.why_not}." if plan.why_not else "It fits. Nothing was written.")


def _hours(seconds: float) -> str:
    minutes = round(seconds / 60)
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{minutes // 60} h {minutes % 60:02d} min"
        if minutes > 59
        else f"{minutes} min"
    )


class _SampledWriter:
    """Has a few responses written and uses them for all prompts: only the lengths matter here."""

    seconds_of_all = 0.0

    def around(self, write: WriteAll) -> WriteAll:
        def few(prompts: list[list[int]]) -> list[Written]:
            chosen = prompts[:: max(1, len(prompts) // _RESPONSES)][:_RESPONSES]
            started = time.monotonic()
            written = write(chosen)
            self.seconds_of_all = (time.monotonic() - started) * len(prompts) / len(chosen)
            return [written[i % len(written)] for i in range(len(prompts))]

        return few


class _Timer(TrainerCallback):
    """Seconds of each step, as the run itself would take, and of the validation after the last step; 0 if there is none."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.validation = 0.0
        self._started = self._ended = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._started = time.monotonic()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._ended = time.monotonic()
        self.seconds.append(self._ended - self._started)

    def on_evaluate(self, *_: Any, **__: Any) -> None:
        self.validation = time.monotonic() - self._ended


def _parts(setup: Setup, optimizer: Optimizer | None, peak: int) -> dict[str, int]:
    model, trained = setup.loaded.model, setup.way.trained
    weights = bytes_of(chain(model.parameters(), model.buffers()))
    every = bytes_of(chain(model.parameters(), model.buffers(), trained.parameters()))
    teacher = setup.way.passes.teacher.model
    copy = bytes_of(teacher.parameters()) if teacher is not model else 0
    parts = {
        "weights": weights,
        "teacher's copy": copy,
        "adapter": every - weights,
        "gradients": sum(p.numel() * p.element_size() for p in trained.parameters() if p.requires_grad),
        "optimizer": bytes_of(_state(optimizer)) if optimizer is not None else 0,
    }
    parts["activations and the rest"] = max(0, peak - sum(parts.values()))
    return {name: size for name, size in parts.items() if size} | {"peak, measured": peak}


def _bare(optimizer: Any) -> Optimizer | None:
    """The optimizer without accelerate's wrapper."""
    return getattr(optimizer, "optimizer", optimizer)


def _state(optimizer: Optimizer) -> Iterator[Tensor]:
    parts = [optimizer.muon, optimizer.adamw] if isinstance(optimizer, MuonAdamW) else [optimizer]
    for part in parts:
        for state in part.state.values():
            yield from (value for value in state.values() if isinstance(value, torch.Tensor))
