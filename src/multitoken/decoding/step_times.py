"""What a step costs on this machine: measured when first needed, and kept up to date by the steps themselves.

The table is of powers of four, in rows, in width (from 1), and in length of context (from 64). Between two numbers of rows and
between two widths it is a straight line; a length takes the entry that is nearest.
"""

import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence

import torch
from transformers import PreTrainedModel

from .attention import AttentionRule
from .cache import SlotCache
from .policies import NextToken
from .row import Request, Row
from .step import Batch, Feed, step

_DRIFT = 0.1  # how much one step's time moves the table
_BUDGET = 0.2  # seconds for one number of rows and one length: a slow model is timed once, a fast one up to
_REPEATS = 4  # times
_LENGTHS = 64, 256, 1024, 4096
_MOST = 16384  # tokens of all rows together, for the cache of a measurement is one more

Measure = Callable[[int, int, Sequence[int]], list[float]]


class StepTimes:
    """Seconds of a step. measure: (rows, length, widths) -> seconds of a step of each width; widest: the most that is fed."""

    def __init__(self, measure: Measure, widest: int) -> None:
        self._measure = measure
        self._widths = [1, 2]
        while self._widths[-1] < widest:
            self._widths.append(min(4 * self._widths[-1], widest))
        self._known: dict[tuple[int, int], list[float]] = {}

    def seconds(self, rows: int, length: int, width: float) -> float:
        return sum(weight * times[i] for times, i, weight in self._around(rows, length, width))

    def observe(self, rows: int, length: int, width: int, seconds: float) -> None:
        """A step took so long: machines are shared, and the table's sizes are round."""
        off = min(max(seconds / self.seconds(rows, length, width), 0.5), 2.0)  # one hiccup says little
        for times, i, weight in self._around(rows, length, width):
            times[i] *= 1 + _DRIFT * weight * (off - 1)

    def _around(self, rows: int, length: int, width: float) -> Iterator[tuple[list[float], int, float]]:
        """The up to four entries that a step lies between: (list, index, weight)."""
        fewer = 1
        while 4 * fewer < rows:
            fewer *= 4
        share = (rows - fewer) / (3 * fewer)  # 0 at `fewer`, 1 at four times as many
        width = min(max(width, 1.0), self._widths[-1])
        right = max(1, bisect_left(self._widths, width))
        low, high = self._widths[right - 1], self._widths[right]
        along = (width - low) / (high - low)
        for size, part in ((fewer, 1 - share), (4 * fewer, share)):
            if part:
                times = self._of(size, length)
                if along < 1:
                    yield times, right - 1, part * (1 - along)
                if along:
                    yield times, right, part * along

    def _of(self, rows: int, length: int) -> list[float]:
        longest = _MOST // rows
        length = min(_LENGTHS, key=lambda known: (known > longest, abs(known - length)))
        if (rows, length) not in self._known:
            self._known[rows, length] = self._measure(rows, length, self._widths)
        return self._known[rows, length]


def measure_on(model: PreTrainedModel, mask_id: int | None, rule: AttentionRule) -> Measure:
    """Times steps of this model over rows that are made up, in a cache of their own."""

    @torch.inference_mode()
    def measure(rows: int, length: int, widths: Sequence[int]) -> list[float]:
        limit = getattr(model.config.get_text_config(), "max_position_embeddings", None) or length + widths[-1]
        length = max(1, min(length, limit - widths[-1]))
        slots = length + widths[-1]
        rule.grow(slots)
        batch = Batch(model, mask_id, rule, SlotCache(model.config.get_text_config().num_hidden_layers, rows, slots))
        # In turn, the best of a few: a table of what the machine can do, not of what disturbed it.
        best = [float("inf")] * len(widths)
        begun = time.perf_counter()
        step(batch, [_feed(length, widths[-1], i) for i in range(rows)])  # warms up
        for _ in range(_REPEATS):
            for at, width in enumerate(widths):
                feeds = [_feed(length, width, i) for i in range(rows)]
                started = time.perf_counter()
                step(batch, feeds)  # ends with its tokens on the CPU, so no device is still at work
                best[at] = min(best[at], time.perf_counter() - started)
            if time.perf_counter() - begun > _BUDGET:
                break
        return best

    return measure


def _feed(length: int, width: int, row: int) -> Feed:
    """Drafts and masks in shares that differ from row to row, as in a step."""
    drafts = (width // 4 + 3 * row) % max(1, width // 2)
    made_up = Row(0, Request([0] * (length + 1), NextToken(), width + 1))
    made_up.cached, made_up.drafts = length, [0] * drafts
    return Feed(made_up, 1, width - 1 - drafts)
