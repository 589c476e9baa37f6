"""What a step costs on this machine: measured when first needed, and kept up to date by the steps themselves.

The table holds one row, and the powers of two of rows up to the most that was ever asked for at their time; in between, and
between the widths that were measured, it is a straight line. A length of context takes the entry that is nearest.
"""

import time
from bisect import bisect_left
from collections.abc import Callable, Sequence

import torch
from transformers import PreTrainedModel

from .attention import AttentionRule
from .cache import SlotCache
from .policies import NextToken
from .row import Request, Row
from .step import Batch, Feed, step

_SPEED = 0.3  # how much one step's time moves the whole table: a shared machine is slow or fast at all sizes alike
_DRIFT = 0.02  # and how much, at least, the entries that it lies between; at first it moves them more
_BUDGET = 0.5  # seconds for one number of rows and one length: a slow model is timed once, a fast one up to
_REPEATS = 4  # times
_LENGTHS = 64, 256, 1024, 4096
_MOST = 16384  # tokens of all rows together, for the cache of a measurement is one more

Measure = Callable[[int, int, Sequence[int]], list[float]]


class _Line:
    """Seconds of a step by width, of one number of rows at one length."""

    def __init__(self, seconds: list[float]) -> None:
        self.seconds = seconds
        self.seen = [4.0] * len(seconds)  # steps that went into each; the measurement counts as four


class StepTimes:
    """Seconds of a step. measure: (rows, length, widths) -> seconds of a step of each width; widest: the most that is fed."""

    def __init__(self, measure: Measure, widest: int) -> None:
        self._measure = measure
        self._widths = [1, 2]
        while self._widths[-1] < widest:
            self._widths.append(min(4 * self._widths[-1], widest))
        self._known: dict[int, dict[int, _Line]] = {length: {} for length in _LENGTHS}
        self._between: dict[tuple[int, int], list[tuple[_Line, float]]] = {}  # for (rows, length), what was looked up
        self._slow = 1.0  # what the machine takes now, beside what it took when it was measured

    def seconds(self, rows: int, length: int, width: float) -> float:
        return self._slow * sum(weight * line.seconds[i] for line, i, weight in self._around(rows, length, width))

    def observe(self, rows: int, length: int, width: int, seconds: float) -> None:
        """A step took so long: machines are shared, and what was measured may have been disturbed. Were only the entries moved
        that it lies between, a machine that slows down would make the sizes look cheap that are not in use."""
        off = min(max(seconds / self.seconds(rows, length, width), 0.25), 4.0)  # one hiccup says little
        self._slow *= 1 + _SPEED * (off - 1)
        for line, i, weight in self._around(rows, length, width):
            line.seen[i] += weight
            line.seconds[i] *= 1 + max(_DRIFT, 1 / line.seen[i]) * weight * (off - 1)

    def _around(self, rows: int, length: int, width: float) -> list[tuple[_Line, int, float]]:
        """The up to four entries that a step lies between: (line, index, weight)."""
        width = min(max(width, 1.0), self._widths[-1])
        right = max(1, bisect_left(self._widths, width))
        low, high = self._widths[right - 1], self._widths[right]
        along = (width - low) / (high - low)
        return [
            (line, i, part * share)
            for line, part in self._lines(rows, length)
            for i, share in ((right - 1, 1 - along), (right, along))
            if part * share
        ]

    def _lines(self, rows: int, length: int) -> list[tuple[_Line, float]]:
        length = min(_LENGTHS, key=lambda known: (known * rows > _MOST, abs(known - length)))
        if (rows, length) not in self._between:
            self._between[rows, length] = self._neighbours(rows, length)
        return self._between[rows, length]

    def _neighbours(self, rows: int, length: int) -> list[tuple[_Line, float]]:
        """The one or two lines of this length that so many rows lie between, measured if need be: (line, weight)."""
        known = self._known[length]
        if rows > max(known, default=0):
            for size in {1, 1 << (rows - 1).bit_length()} - set(known):
                self._between.clear()
                known[size] = _Line([t / self._slow for t in self._measure(size, length, self._widths)])
        fewer = max(size for size in known if size <= rows)
        if fewer == rows:
            return [(known[rows], 1.0)]
        more = min(size for size in known if size > rows)
        share = (rows - fewer) / (more - fewer)
        return [(known[fewer], 1 - share), (known[more], share)]


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
