"""How many masks the requests of a vLLM server are given: the engine's rule (`decoding/pace.py`), with step times as they are
in vLLM.

vLLM feeds the tokens of all requests one behind the other, with no padding, so a step's time goes by their number; to that
comes what scheduler, sampler and Python take, which goes by the number of requests. The forward pass is measured when the
server starts, with masks and without (a gated adapter costs something at masks). The machine may have been busy then, and
the rest is not known at all: both are learnt from the steps themselves, from the time between two of them that had the same
requests and no prompt.

    seconds of a step = a forward(tokens) + b + c requests
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch

from multitoken.decoding.pace import Pace

_REPEATS = 4
_GUESS = np.array([1.0, 2e-3, 1e-4])  # a, b in seconds, c in seconds
_SURE = 1 / np.array([0.5, 2e-3, 1e-4]) ** 2  # how sure the guess is: one over its variance
_NOISE = 0.15  # of a step's time, as a share of it
_FADE = 0.99  # what a step has taught is forgotten over a hundred steps
_BLOCKS = 8  # that one step counts at most: of a large batch, some tell enough


class Measured(NamedTuple):
    """Seconds of a forward pass by its number of tokens."""

    plain: Mapping[int, float]
    masked: Mapping[int, float]  # with masks among them


class StepTimes:
    """Seconds of a step by the number of requests and of the tokens that they feed together."""

    def __init__(self, measured: Measured) -> None:
        self.requests = 1  # of the batch that is asked about
        self._tables = [(np.array(sorted(table)), np.array([table[n] for n in sorted(table)])) for table in measured]
        self._factors = _GUESS.copy()
        self._seen = np.zeros((3, 3))  # least squares: normal equations of what was seen
        self._took = np.zeros(3)
        self._steps = 0

    def seconds(self, rows: int, length: int, width: float) -> float:
        """As the rule asks: of the batch, were each of its requests to feed `width` tokens."""
        return float(self._parts(self.requests, self.requests * width) @ self._factors)

    def observe(self, requests: int, tokens: int, seconds: float) -> None:
        """A step of so many requests took so long."""
        parts = self._parts(requests, tokens)
        if self._steps:  # one hiccup says little
            expected = float(parts @ self._factors)
            seconds = min(max(seconds, expected / 2), expected * 2)
        self._steps += 1
        parts = parts / (seconds * _NOISE)
        self._seen = _FADE * self._seen + np.outer(parts, parts)
        self._took = _FADE * self._took + parts / _NOISE
        solved = np.linalg.solve(self._seen + np.diag(_SURE), self._took + _SURE * _GUESS)
        self._factors = np.maximum(solved, (0.1, 0.0, 0.0))

    def _parts(self, requests: int, tokens: float) -> np.ndarray:
        numbers, times = self._tables[tokens > requests]
        if tokens > numbers[-1]:  # on, as between the last two
            slope = (times[-1] - times[-2]) / (numbers[-1] - numbers[-2])
            return np.array([times[-1] + slope * (tokens - numbers[-1]), 1.0, requests])
        return np.array([np.interp(tokens, numbers, times), 1.0, requests])


class Pacer:
    """Follows a server's steps, and says how many masks a request gets whose tokens are verified."""

    def __init__(self, places: int, measured: Measured) -> None:
        self._times = StepTimes(measured)
        self._pace = Pace(cast(Any, self._times), places)
        self._turn = 0
        self._batch: object = None  # of the step before, if no prompt was in it
        self._begun = 0.0
        self._fed: dict[str, int] = {}  # masks of the block that a request's drafts are of

    def clock(self, batch: object, requests: int, tokens: int, prompts: bool) -> None:
        """A step is being sampled. batch: the same object as long as the requests are the same ones."""
        now = time.perf_counter()
        if self._batch is batch and not prompts:
            self._times.observe(requests, tokens, now - self._begun)
        self._batch, self._begun = None if prompts else batch, now

    def settle(self, names: Sequence[str], drafted: Sequence[int], held: Sequence[int], fed: Sequence[int]) -> None:
        """What the step brought to each request: drafts that it fed, those of them that held, and masks behind them, of a
        block that is good for something; 0 if there is none."""
        blocks = [
            (self._fed[name], d, h) for name, d, h in zip(names, drafted, held, strict=True) if self._fed.get(name)
        ]
        if new := sum(name not in self._fed for name in names):
            self._pace.joined(new / len(names))
        self._fed = dict(zip(names, fed, strict=True))
        every = -(-len(blocks) // _BLOCKS) or 1
        self._pace.observe(blocks[self._turn % every :: every])

    def masks(self, requests: int) -> int:
        """Masks a request for the next step."""
        self._turn += 1
        self._times.requests = requests
        # Unpadded, all requests together are as one row that is so many times as wide.
        return self._pace.masks(1, 0)


def measure(runner: Any, mask_id: int, most: int) -> Measured:
    """A forward pass of vLLM's model runner of 1, 2, 4, ... tokens up to `most`, all of them real or every second one a mask.
    The best of a few: what the machine can do, not what disturbed it."""
    numbers = [1]
    while numbers[-1] < most:
        numbers.append(2 * numbers[-1])
    best: tuple[dict[int, float], dict[int, float]] = ({}, {})
    for repeat in range(_REPEATS):
        for n in numbers:
            for times, token in zip(best, (0, mask_id), strict=True):
                runner.input_ids.gpu[:n] = torch.arange(n) % 2 * token
                started = time.perf_counter()
                hidden, _ = runner._dummy_run(n)
                # Under LoRA the head knows whose rows it is given, and a dummy run has at most one of each request.
                runner.model.compute_logits(hidden[: n if runner.lora_config is None else min(n, runner.max_num_reqs)])
                if runner.device.type == "cuda":
                    torch.cuda.synchronize(runner.device)
                if repeat:  # the first round warms up
                    times[n] = min(times.get(n, float("inf")), time.perf_counter() - started)
    runner.input_ids.gpu.zero_()
    return Measured(*best)
