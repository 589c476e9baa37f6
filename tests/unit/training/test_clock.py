"""When a run has validation passes on unseen prompts."""

from types import SimpleNamespace

import torch

from multitoken.training import clock as module
from multitoken.training.clock import Clock, ValidationSchedule


def validations_of(
    monkeypatch, seconds_per_validation: float, *, steps: int = 100, seconds_per_step: float = 1.0
) -> list[int]:
    """The steps after which a run of `steps` steps requests a validation pass. Only steps and validation passes advance
    its clock."""
    now = 0.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    args = SimpleNamespace(device=torch.device("cpu"), max_steps=steps)
    state = SimpleNamespace(global_step=0)
    clock = Clock(steps=steps, minutes=None)
    validations = ValidationSchedule(clock, 10)
    asked = []
    for callback in (clock, validations):
        callback.on_train_begin(args, state, None)
    for step in range(1, steps + 1):
        now += seconds_per_step
        state.global_step, control = step, SimpleNamespace(should_evaluate=step == steps)  # as the trainer does
        for callback in (clock, validations):
            callback.on_step_end(args, state, control)
        if control.should_evaluate:
            asked.append(step)
            now += seconds_per_validation
            validations.on_evaluate(args, state, control)
    return asked


def test_a_cheap_validation_is_made_in_every_tenth_of_a_run(monkeypatch) -> None:
    assert validations_of(monkeypatch, 0.1) == [10, 20, 30, 40, 50, 60, 70, 80, 90]


def test_costly_validations_take_no_more_than_a_tenth_of_the_time(monkeypatch) -> None:
    """On a slow machine, a run of minutes did little else. The first validation pass is made, however long it takes."""
    assert validations_of(monkeypatch, 3.0) == [10, 60, 90]
    assert validations_of(monkeypatch, 50.0) == [10]
