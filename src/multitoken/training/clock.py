"""How far a run is: by steps or by minutes, the same in every process."""

import time
from typing import Any

import torch
from torch import distributed
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import SaveStrategy

_VALIDATION_SHARE = 0.1  # of a run's time, for validation passes
_CHEAP = 5.0  # seconds that all validation passes together may always take


class Clock(TrainerCallback):
    """How far a run is, in [0, 1]. Minutes of earlier, interrupted runs count.

    In a run given in minutes, the learning rate and the end depend on a clock, and each process has its own. All
    processes use the first one's, read once per step.
    """

    def __init__(self, *, steps: int | None, minutes: float | None) -> None:
        self.steps, self.minutes = steps, minutes
        self.step = 0
        self.spent = 0.0  # seconds of earlier runs
        self._started: float | None = None
        self._stopped: float | None = None
        self._read = 0.0  # seconds at the end of the last step, by the first process's clock

    @property
    def seconds(self) -> float:
        """Seconds of training so far."""
        if self._started is None:
            return self.spent
        return self.spent + (self._stopped or time.monotonic()) - self._started

    def progress(self) -> float:
        if self.steps is not None:
            return min(1.0, self.step / self.steps)
        assert self.minutes is not None
        return min(1.0, self._read / (60 * self.minutes))

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._started = time.monotonic()
        self.step, self._read = state.global_step, self.spent

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.step, self._read = state.global_step, _first_process_says(self.seconds, args.device)
        if self.minutes is not None and self.progress() >= 1.0:
            control.should_training_stop = True
            # As after the last of a given number of steps: if the model cannot be written, the run can be resumed.
            control.should_save = args.save_strategy != SaveStrategy.NO

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._stopped = time.monotonic()


class ValidationSchedule(TrainerCallback):
    """Requests a validation pass on unseen prompts after each of `number` equal parts of the run except the last, if
    another pass is affordable."""

    def __init__(self, clock: Clock, number: int) -> None:
        self.clock, self.number = clock, number
        self._done = 0
        self.validations, self.seconds = 0, 0.0  # so far
        self._asked: float | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._done = self._parts()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step >= args.max_steps:
            # Skip the trainer's own last validation: `adapt` validates the trained model afterwards, on more samples.
            control.should_evaluate = False
        if self._done < self._parts() < self.number:
            self._done = self._parts()
            may = affordable(self.validations, self.seconds, self.clock.seconds)
            if _first_process_says(float(may), args.device):
                control.should_evaluate, self._asked = True, time.monotonic()

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._asked is not None:
            self.validations, self.seconds = self.validations + 1, self.seconds + time.monotonic() - self._asked
            self._asked = None

    def _parts(self) -> int:
        return int(self.clock.progress() * self.number + 1e-9)


def affordable(validations: int, seconds: float, elapsed: float) -> bool:
    """Whether another validation pass may follow `validations` of them, which took `seconds` of the `elapsed` seconds.

    At most a tenth of a run goes to validation, apart from the first pass and from a few seconds in all. (A pass takes
    seconds, so a run of a few minutes on a slow machine would otherwise do little else.)
    """
    return not validations or seconds * (validations + 1) / validations <= max(_CHEAP, _VALIDATION_SHARE * elapsed)


def _first_process_says(value: float, device: torch.device) -> float:
    if not distributed.is_initialized():
        return value
    told = torch.tensor([value], dtype=torch.float32, device=device)
    distributed.broadcast(told, src=0)
    return float(told)
