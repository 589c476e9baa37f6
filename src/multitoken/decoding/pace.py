"""How many masks to feed: as many as make the most expected tokens a second, and none where they do not pay.

Two things decide. What masks yield: how often the draft of place j is made, and holds, learnt from the running acceptance.
What they cost: the time of a step by its width, the number of rows and their length (`step_times.py`). Under Exact the output
does not depend on the number of masks, so it may be chosen freely; a policy whose tokens are final would write another
text, so only verified policies are paced.

For m masks, let c be the expected number of drafts that hold, r the probability that one fails, d the drafts of the row that
has most. A row whose block is good is followed, with probability r, by a step in which its block is wasted: a share
r / (1 + r) of its steps. A step is narrow only if that happens to all n rows at once, w = (r / (1 + r))^n, so

    tokens per second (m) = n (1 + c + r) / (1 + r) / ((1 - w) time(1 + d + m) + w time(1 + m))
"""

from collections.abc import Iterator, Sequence
from typing import Protocol

_FADE = 0.9995  # a step: what was learnt is forgotten over some thousand steps, so refused masks are tried again
_TURN = 0.5  # a batch whose requests are all new: they may be of another kind
_PATIENCE = 4  # steps that a decision stands: deciding costs a good part of a millisecond
_WINDOW = 16  # blocks of each request, and of one more, that a place remembers
_PRIOR = 4.0, 3.8  # a place begins as if it had been tried so often, and had held so often
_MARGIN = 1.1  # masks must promise so much more than plain decoding: an estimate is not a measurement


class Times(Protocol):
    """Seconds of a step, by what is fed and what is already there."""

    def seconds(self, rows: int, length: int, width: float) -> float:
        """rows of at most `length` cached tokens, each fed `width` more."""
        ...

    def observe(self, rows: int, length: int, width: int, seconds: float) -> None:
        """A step took so long."""
        ...


class Acceptance:
    """Running counts by place of the block, 1 to k - 1; a hopeful guess where nothing is known yet."""

    def __init__(self, places: int) -> None:
        self.places = places
        self._tried = [[*_PRIOR] for _ in range(places)]  # at place j: blocks that could draft, those that did
        self._held = [[*_PRIOR] for _ in range(places)]  # drafts behind held ones, those that held

    def observe(self, blocks: Sequence[tuple[int, int, int]]) -> None:
        """What the blocks of a step became: (masks fed, drafts made, drafts that held). Of a larger batch more is remembered, or
        the luck of its last step would decide."""
        window = _WINDOW * (len(blocks) + 1)
        for fed, drafted, held in blocks:
            for j in range(min(fed, self.places, drafted + 1)):
                _count(self._tried[j], j < drafted, window)
                if j <= held and j < drafted:
                    _count(self._held[j], j < held, window)

    def fade(self, left: float) -> None:
        """What was learnt weighs `left` of what it did, and the guess of before more."""
        for counts in (*self._tried, *self._held):
            for i, prior in enumerate(_PRIOR):
                counts[i] = prior + (counts[i] - prior) * left

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


def _count(counts: list[float], success: bool, window: int) -> None:
    """One more trial, at the expense of the oldest."""
    if counts[0] >= window:
        counts[:] = (count * (1 - 1 / window) for count in counts)
    counts[0] += 1
    counts[1] += success


class Pace:
    """Chooses the number of masks of each step."""

    def __init__(self, times: Times, places: int) -> None:
        self._times = times
        self._acceptance = Acceptance(places)
        self._steps = 0  # since the last decision
        self._decided: tuple[int, int] | None = None  # the number of rows, and the masks that each is fed

    def masks(self, rows: int, length: int) -> int:
        """Masks a row for a step of so many rows, of at most `length` cached tokens."""
        if self._decided is None or self._decided[0] != rows or self._steps >= _PATIENCE:
            self._acceptance.fade(_FADE**self._steps)
            self._steps = 0
            self._decided = rows, self._best(rows, length)
        return self._decided[1]

    def observe(self, blocks: Sequence[tuple[int, int, int]], step: tuple[int, int, int, float] | None = None) -> None:
        """What a step brought: (masks fed, drafts made, drafts that held) of the blocks that it settled, and its rows,
        length, width and seconds."""
        self._steps += 1
        if step is not None:
            self._times.observe(*step)
        self._acceptance.observe(blocks)

    def joined(self, share: float) -> None:
        """New requests have joined; `share` of the batch is new."""
        self._acceptance.fade(_TURN**share)
        self._decided = None

    def _best(self, rows: int, length: int) -> int:
        best, most = 0, _MARGIN / self._times.seconds(rows, length, 1)
        for m, (confirmed, fails, drafts) in enumerate(self._acceptance.expected(rows), 1):
            wasted = fails / (1 + fails)
            narrow = wasted**rows
            wide = self._times.seconds(rows, length, 1 + drafts + m)
            spent = (1 - narrow) * wide + narrow * self._times.seconds(rows, length, 1 + m)
            rate = (1 + confirmed + fails) / (1 + fails) / spent
            if rate > most:
                best, most = m, rate
        return best
