"""When a run looks at unseen prompts."""

from types import SimpleNamespace

import torch

from multitoken.training import clock as module
from multitoken.training.clock import Clock, Looks


def looks_of(monkeypatch, seconds_per_look: float, *, steps: int = 100, seconds_per_step: float = 1.0) -> list[int]:
    """The steps behind which a run of so many asks for a look, by a clock that only steps and looks move."""
    now = 0.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    args = SimpleNamespace(device=torch.device("cpu"), max_steps=steps)
    state = SimpleNamespace(global_step=0)
    clock = Clock(steps=steps, minutes=None)
    looks = Looks(clock, 10)
    asked = []
    for callback in (clock, looks):
        callback.on_train_begin(args, state, None)
    for step in range(1, steps + 1):
        now += seconds_per_step
        state.global_step, control = step, SimpleNamespace(should_evaluate=step == steps)  # as the trainer asks itself
        for callback in (clock, looks):
            callback.on_step_end(args, state, control)
        if control.should_evaluate:
            asked.append(step)
            now += seconds_per_look
            looks.on_evaluate(args, state, control)
    return asked


def test_a_cheap_look_is_made_in_every_tenth_of_a_run(monkeypatch) -> None:
    assert looks_of(monkeypatch, 0.1) == [10, 20, 30, 40, 50, 60, 70, 80, 90]


def test_dear_looks_take_no_more_than_a_tenth_of_the_time(monkeypatch) -> None:
    """On a slow machine a run of minutes was little else. The first one is made whatever it takes."""
    assert looks_of(monkeypatch, 3.0) == [10, 60, 90]
    assert looks_of(monkeypatch, 50.0) == [10]
