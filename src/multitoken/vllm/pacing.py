"""How many masks the requests of a vLLM server are given: the engine's rule (`decoding/pace.py`), with step times as they are
in vLLM.

vLLM feeds the tokens of all requests one behind the other, with no padding, so a step's time goes by their number; to that
comes what scheduler, sampler and Python take, which goes by the number of requests. The first is measured when the server
starts, the second is learnt from the steps themselves: the time between two of them that had the same requests and no
prompt.
"""

import time
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch

from multitoken.decoding.pace import Pace
from multitoken.decoding.row import Row

_REPEATS = 4
_SLOWEST = 0.05  # how much one step moves what is known of the time beside the forward pass
_DRIFT = 0.01  # and of the forward pass
_BLOCKS = 8  # that one step counts at most: of a large batch, some tell enough
_REST = 8  # steps without masks until they are thought of again


class StepTimes:
    """Seconds of a step by the number of requests and of the tokens that they feed together."""

    def __init__(self, measured: Mapping[int, float]) -> None:
        """measured: seconds of a forward pass by its number of tokens, for two numbers at least."""
        self.requests = 1  # of the batch that is asked about
        self._tokens = sorted(measured)
        self._forward = [measured[n] for n in self._tokens]
        self._beside: dict[int, tuple[float, int]] = {}  # by power of two of requests: seconds, steps seen

    def seconds(self, rows: int, width: float) -> float:
        """As the rule asks: of the batch, were each of its requests to feed `width` tokens."""
        return self._at(self.requests * width)[2] + self._beside_of(self.requests)

    def observe(self, requests: int, tokens: int, seconds: float) -> None:
        """A step of so many requests took so long."""
        left, share, forward = self._at(tokens)
        beside, seen = self._beside_of(requests), self._beside.get(_bucket(requests), (0.0, 0))[1]
        off = seconds - forward - beside
        if seen:  # one hiccup says little
            off = max(min(off, 0.5 * (forward + beside)), -0.5 * (forward + beside))
        self._beside[_bucket(requests)] = (max(0.0, beside + off * max(_SLOWEST, 1 / (seen + 1))), seen + 1)
        if seen:
            for i, weight in ((left, 1 - share), (left + 1, share)):
                self._forward[i] = max(self._forward[i] + _DRIFT * weight * off, 1e-6)

    def _at(self, tokens: float) -> tuple[int, float, float]:
        """(point to the left, share of the one to the right, seconds between them)"""
        right = min(max(1, bisect_left(self._tokens, tokens)), len(self._tokens) - 1)
        low, high = self._tokens[right - 1], self._tokens[right]
        share = (tokens - low) / (high - low)
        return right - 1, min(share, 1.0), self._forward[right - 1] * (1 - share) + self._forward[right] * share

    def _beside_of(self, requests: int) -> float:
        """Of as many requests, or of the nearest number that is known."""
        bucket = _bucket(requests)
        if bucket in self._beside:
            return self._beside[bucket][0]
        return min(self._beside.items(), key=lambda item: abs(item[0] - bucket), default=(0, (0.0, 0)))[1][0]


def _bucket(requests: int) -> int:
    return (requests - 1).bit_length()


class Pacer:
    """Follows a server's steps, and says how many masks a request gets whose tokens are verified."""

    def __init__(self, places: int, measured: Mapping[int, float]) -> None:
        self._times = StepTimes(measured)
        self._pace = Pace(cast(Any, self._times), places)
        self._chosen = places
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
        self._fed = dict(zip(names, fed, strict=True))
        if blocks or self._turn % _REST == 0:
            every = -(-len(blocks) // _BLOCKS) or 1
            self._pace.observe(blocks[self._turn % every :: every])

    def masks(self, requests: int) -> int:
        """Masks a request for the next step."""
        self._turn += 1
        if self._chosen or self._turn % _REST == 0:
            self._times.requests = requests
            # Unpadded, all requests together are as one row that is so many times as wide.
            self._chosen = self._pace.masks(cast(Sequence[Row], (None,)))
        return self._chosen


def measure(runner: Any, mask_id: int, most: int) -> dict[int, float]:
    """Seconds of a forward pass of vLLM's model runner, half of its tokens masks, for 1, 2, 4, ... tokens up to `most`. The
    best of a few: what the machine can do, not what disturbed it."""
    numbers = [1]
    while numbers[-1] < most:
        numbers.append(2 * numbers[-1])
    numbers = [*numbers[:-1], max(2, most)]
    best: dict[int, float] = {}
    for repeat in range(_REPEATS):
        for n in numbers:
            runner.input_ids.gpu[:n] = torch.arange(n) % 2 * mask_id
            started = time.perf_counter()
            hidden, _ = runner._dummy_run(n)
            runner.model.compute_logits(hidden[:n])
            if runner.device.type == "cuda":
                torch.cuda.synchronize(runner.device)
            if repeat:  # the first round warms up
                best[n] = min(best.get(n, float("inf")), time.perf_counter() - started)
    runner.input_ids.gpu.zero_()
    return best
