"""How many masks to feed: as many as make the most expected tokens a second, and none where they do not pay.

Two things decide. What masks yield: how often the draft of place j is made, and holds, learnt from what became of blocks.
What they cost: the time of a step by its width, the number of rows and their length (`step_times.py`). Under Exact the output
does not depend on the number of masks, so it may be chosen freely; a policy whose tokens are final would write another
text, so only verified policies are paced.

For m masks, let c be the expected number of drafts that hold, r the probability that one fails, d the drafts of the row that
has most. A row whose block is good is followed, with probability r, by a step in which its block is wasted: a share
r / (1 + r) of its steps. A step is narrow only if that happens to all n rows at once, w = (r / (1 + r))^n, so

    tokens per second (m) = n (1 + c + r) / (1 + r) / ((1 - w) time(1 + d + m) + w time(1 + m))

What is not fed cannot be learnt about. So a small share of the time goes into trials of as many masks as would pay if all
drafts were good. A trial whose drafts hold has cost nothing, and the next one follows at once.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

_PATIENCE = 4  # steps that a decision stands: deciding costs a good part of a millisecond
_REST = 16  # and one that no masks are to be fed, for nothing is learnt meanwhile
_WINDOW = 16  # blocks of each request, and of one more, that a place remembers of the present requests
_TRAFFIC = 2  # times as many it remembers of all requests
_WEIGHT = 3.0  # blocks of the present requests that weigh as much as all of the traffic
_HOPE = 0.98  # how often a draft is made, and holds, as long as nothing is known, and in a trial
_MARGIN = 1.15  # masks must promise so much more than plain decoding: an estimate is not a measurement
_TRIALS = 0.01  # of the time may be lost in trials


class Times(Protocol):
    """Seconds of a step, by what is fed and what is already there."""

    def seconds(self, rows: int, length: int, width: float) -> float:
        """rows of at most `length` cached tokens, each fed `width` more."""
        ...

    def observe(self, rows: int, length: int, width: int, seconds: float) -> None:
        """A step took so long."""
        ...


class _Rate:
    """How often something succeeds: among the present requests, and, where they say little, in all the traffic."""

    def __init__(self) -> None:
        self._traffic = [_WEIGHT, _WEIGHT * _HOPE]  # trials, successes
        self._present = [0.0, 0.0]

    def count(self, success: bool, window: int) -> None:
        """One more trial, at the expense of the oldest."""
        for counts, most in ((self._present, window), (self._traffic, _TRAFFIC * window)):
            if counts[0] >= most:
                counts[:] = (count * (1 - 1 / most) for count in counts)
            counts[0] += 1
            counts[1] += success

    def forget(self, share: float) -> None:
        """So many of the present requests are new."""
        self._present = [count * (1 - share) for count in self._present]

    def value(self) -> float:
        (trials, successes), (of_all, held) = self._present, self._traffic
        return (successes + _WEIGHT * held / of_all) / (trials + _WEIGHT)


class Acceptance:
    """What becomes of blocks, by place of the block, 1 to k - 1."""

    def __init__(self, places: int) -> None:
        self.places = places
        self._made = [_Rate() for _ in range(places)]  # at place j: of the blocks that could draft, those that did
        self._held = [_Rate() for _ in range(places)]  # of the drafts behind held ones, those that held

    def observe(self, blocks: Sequence[tuple[int, int, int]]) -> None:
        """What the blocks of a step became: (masks fed, drafts made, drafts that held). Of a larger batch more is remembered, or
        the luck of its last step would decide."""
        window = _WINDOW * (len(blocks) + 1)
        for fed, drafted, held in blocks:
            for j in range(min(fed, self.places, drafted + 1)):
                self._made[j].count(j < drafted, window)
                if j <= held and j < drafted:
                    self._held[j].count(j < held, window)

    def joined(self, share: float) -> None:
        """So many of the present requests are new, and may be of another kind."""
        for rate in (*self._made, *self._held):
            rate.forget(share)

    def rates(self) -> list[tuple[float, float]]:
        """By place: how often a draft is made, and how often it holds."""
        return [(made.value(), held.value()) for made, held in zip(self._made, self._held, strict=True)]


def expected(rates: Sequence[tuple[float, float]], rows: int = 1) -> Iterator[tuple[float, float, float]]:
    """For 1, 2, ... masks a row: confirmed drafts, the probability that one fails, drafts of the row that has most."""
    confirmed = fails = most = 0.0
    reached = made = 1.0
    for drafting, holding in rates:
        fails += reached * drafting * (1 - holding)
        reached *= drafting * holding
        made *= drafting
        confirmed += reached
        most += 1 - (1 - made) ** rows
        yield confirmed, fails, most


@dataclass(frozen=True)
class _Choice:
    """Masks a row; what a step then takes, and what it is expected to confirm, beside a plain one's time and one token."""

    masks: int = 0
    takes: float = 1.0
    confirms: float = 0.0


class Pace:
    """Chooses the number of masks of each step."""

    def __init__(self, times: Times, places: int) -> None:
        self._times = times
        self._acceptance = Acceptance(places)
        self._stands = 0  # steps that the last decision still stands
        self._rows = 0
        self._choice = _Choice()
        self._trial: _Choice | None = None  # what a trial stands in for, until its blocks are known
        self._spare = 0.0  # time for trials, in plain steps
        self._price = 0.0  # of the next one

    def masks(self, rows: int, length: int) -> int:
        """Masks a row for a step of so many rows, of at most `length` cached tokens."""
        if self._stands <= 0 or rows != self._rows:
            self._decide(rows, length)
        return self._choice.masks

    def observe(self, blocks: Sequence[tuple[int, int, int]], step: tuple[int, int, int, float] | None = None) -> None:
        """What a step brought: (masks fed, drafts made, drafts that held) of the blocks that it settled, and its rows,
        length, width and seconds."""
        self._stands -= 1
        self._spare += _TRIALS
        if step is not None:
            self._times.observe(*step)
        self._acceptance.observe(blocks)
        if (best := self._trial) is not None:
            tried = [held for fed, _, held in blocks if fed > best.masks]
            if tried:  # a step later
                self._spare += sum(tried) / len(tried) - best.confirms
                self._trial = None

    def joined(self, share: float) -> None:
        """New requests have joined; `share` of the batch is new."""
        self._acceptance.joined(share)
        self._stands = 0

    def _decide(self, rows: int, length: int) -> None:
        self._rows, self._stands = rows, _PATIENCE
        self._choice = best = self._best(self._acceptance.rates(), rows, length, _MARGIN)
        if not best.masks:
            self._stands = _REST
        if self._spare < self._price:
            return
        trial = self._best([(_HOPE, _HOPE)] * self._acceptance.places, rows, length, 1.0)
        self._price = max(_MARGIN - 1, trial.takes - best.takes)
        self._spare = min(self._spare, self._price)
        if trial.masks <= best.masks:
            self._spare = 0.0
        elif self._spare == self._price:
            self._choice, self._trial = trial, best
            self._spare -= self._price
            self._stands = 1

    def _best(self, rates: Sequence[tuple[float, float]], rows: int, length: int, margin: float) -> _Choice:
        plain = self._times.seconds(rows, length, 1)
        best, most = _Choice(), margin
        for m, (confirmed, fails, drafts) in enumerate(expected(rates, rows), 1):
            wasted = fails / (1 + fails)
            narrow = wasted**rows
            wide = self._times.seconds(rows, length, 1 + drafts + m)
            spent = ((1 - narrow) * wide + narrow * self._times.seconds(rows, length, 1 + m)) / plain
            rate = (1 + confirmed + fails) / (1 + fails) / spent
            if rate > most:
                best, most = _Choice(m, spent, confirmed), rate
        return best
