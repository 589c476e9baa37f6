"""How many masks to feed: as many as make the most expected tokens a second, and none where they do not pay.

Two things decide. What masks yield: how often the draft of place j is made, and holds, learnt from the running acceptance.
What they cost: the time of a step by its width and the number of rows, measured on this machine the first time it is
needed. Under Exact the output does not depend on the number of masks, so it may be chosen freely; a policy whose tokens
are final would write another text, so only verified policies are paced.

Let c(j) be the probability that the first j drafts are made and hold, r(m) that one of at most m drafts fails, d(m) the
expected number of drafts. A step whose block is good is followed, with probability r, by one whose block is wasted:

    tokens per second (m) = (1 + sum of c(j) for j <= m + r(m)) / (time(1 + d(m) + m) + r(m) time(1 + m))
"""

import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence

import torch

from .cache import SlotCache
from .policies import NextToken
from .row import Request, Row
from .step import Batch, Feed, forward_rows

_FADE = 0.998  # a step: what was learnt is forgotten over a thousand steps, so refused masks are tried again
_WINDOW = 32.0  # blocks that a place remembers: the next request may be of another kind
_OPTIMISM = 4.0  # a place begins as if so many drafts had been made there and had held
_DRIFT = 0.05  # how much one step's time moves the table of step times
_REPEATS = 3
_MARGIN = 1.1  # masks must promise so much more than plain decoding: an estimate is not a measurement


class Acceptance:
    """Running counts by place of the block, 1 to k - 1; a little optimism where nothing is known yet."""

    def __init__(self, places: int) -> None:
        self.places = places
        self._tried = [[_OPTIMISM] * 2 for _ in range(places)]  # at place j: blocks that could draft, those that did
        self._held = [[_OPTIMISM] * 2 for _ in range(places)]  # drafts behind held ones, those that held

    def observe(self, fed: int, drafted: int, held: int) -> None:
        """A block of `fed` masks became `drafted` drafts, of which the first `held` held."""
        for j in range(min(fed, self.places)):
            if j > drafted:
                break
            _count(self._tried[j], j < drafted)
            if j <= held and j < drafted:
                _count(self._held[j], j < held)

    def fade(self) -> None:
        """Once a step: old counts weigh less, and the optimism of before more."""
        for counts in (*self._tried, *self._held):
            counts[:] = (_OPTIMISM + (count - _OPTIMISM) * _FADE for count in counts)

    def expected(self, rows: int = 1) -> Iterator[tuple[float, float, float]]:
        """For 1, 2, ... masks a row: confirmed drafts, the probability that one fails, drafts of the row that has most."""
        confirmed = fails = most = 0.0
        reached = made = 1.0
        for (tried, drafted), (risked, held) in zip(self._tried, self._held, strict=True):
            drafting, holding = drafted / tried, held / risked
            fails += reached * drafting * (1 - holding)
            reached *= drafting * holding
            made *= drafting
            confirmed += reached
            most += 1 - (1 - made) ** rows
            yield confirmed, fails, most


def _count(counts: list[float], success: bool) -> None:
    """One more trial, at the expense of the oldest."""
    if counts[0] >= _WINDOW:
        counts[:] = (count * (1 - 1 / _WINDOW) for count in counts)
    counts[0] += 1
    counts[1] += success


class StepTimes:
    """Seconds of a step by number of rows and width, measured once for each power of two of rows, and kept up to date."""

    def __init__(self, batch: Batch, widest: int) -> None:
        self._batch = batch
        self._widths = [1]
        while self._widths[-1] < widest:
            self._widths.append(2 * self._widths[-1])
        self._known: dict[int, list[float]] = {}

    def seconds(self, rows: int, width: float) -> float:
        times, widths = self._of(rows), self._widths
        width = min(max(width, 1.0), widths[-1])
        right = max(1, bisect_left(widths, width))
        low, high = widths[right - 1], widths[right]
        return times[right - 1] + (times[right] - times[right - 1]) * (width - low) / (high - low)

    def observe(self, rows: int, width: int, seconds: float) -> None:
        """A step took so long: contexts grow, and machines are shared."""
        times = self._of(rows)
        right = min(bisect_left(self._widths, width), len(self._widths) - 1)
        off = min(max(seconds / self.seconds(rows, width), 0.5), 2.0)  # one hiccup says little
        for i in {right} if self._widths[right] == width else {max(0, right - 1), right}:
            times[i] *= 1 + _DRIFT * (off - 1)

    def _of(self, rows: int) -> list[float]:
        bucket = 1 << (rows - 1).bit_length()
        if bucket not in self._known:
            self._known[bucket] = self._measure(bucket)
        return self._known[bucket]

    @torch.inference_mode()
    def _measure(self, rows: int) -> list[float]:
        """In turn, the best of a few: a table of what the machine can do, not of what disturbed it."""
        slots = 32 + self._widths[-1]
        scratch = SlotCache(len(self._batch.cache.layers), rows, slots)
        self._batch.rule.grow(slots)
        batch = Batch(self._batch.model, self._batch.mask_id, self._batch.rule, scratch)
        best = [float("inf")] * len(self._widths)
        for repeat in range(_REPEATS + 1):
            for at, width in enumerate(self._widths):
                feeds = [self._feed(width, i) for i in range(rows)]
                _wait(batch)
                started = time.perf_counter()
                forward_rows(batch, feeds)
                _wait(batch)
                if repeat:  # the first round warms up
                    best[at] = min(best[at], time.perf_counter() - started)
        return best

    @staticmethod
    def _feed(width: int, row: int) -> Feed:
        """Real tokens and masks in shares that differ from row to row, as in a step."""
        real = 1 + (width // 4 + 3 * row) % max(1, width // 2)
        scratch = Row(0, Request([0] * 32 + [0] * real, NextToken(), 1))
        scratch.cached = 32
        return Feed(scratch, real, width - real)


def _wait(batch: Batch) -> None:
    if batch.model.device.type == "cuda":
        torch.cuda.synchronize(batch.model.device)


class Pace:
    """Chooses the number of masks of each step."""

    def __init__(self, times: StepTimes, places: int) -> None:
        self._times = times
        self._acceptance = Acceptance(places)

    def masks(self, rows: Sequence[Row]) -> int:
        """Masks a row for a step of these rows."""
        n = len(rows)
        plain = 1 / self._times.seconds(n, 1)
        best, most = 0, plain * _MARGIN
        for m, (confirmed, fails, drafts) in enumerate(self._acceptance.expected(n), 1):
            spent = self._times.seconds(n, 1 + drafts + m) + fails * self._times.seconds(n, 1 + m)
            rate = (1 + confirmed + fails) / spent
            if rate > most:
                best, most = m, rate
        return best

    def observe(self, blocks: Sequence[tuple[int, int, int]], step: tuple[int, int, float] | None = None) -> None:
        """What a step brought: (masks fed, drafts made, drafts that held) of the blocks that it settled, and its rows, width
        and seconds."""
        if step is not None:
            self._times.observe(*step)
        self._acceptance.fade()
        for block in blocks:
            self._acceptance.observe(*block)
