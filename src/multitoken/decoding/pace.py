"""How many masks to feed: what gives most tokens a second on the live traffic itself. Nothing is predicted.

Under Exact the output does not depend on the number of masks, so it may be chosen freely; a policy whose tokens are final
would write another text, so only verified policies are paced.

A *level* is the most masks that a row is fed: 0 (plain decoding), 1, 3, 7, ... For each level, and each size of the batch, the
tokens a second of its own steps are kept, old ones forgotten. The best level is fed. In between, the levels beside it, all
masks and plain decoding have trials of a few steps, the more often the less they cost: a trial that loses the time of one step
is repeated after `_PRICE` steps. A *purse* holds what masks have won against plain decoding, up to a few steps' time, and a small
allowance: while it is empty nothing but plain decoding is fed, whatever was measured.

Within a level each row is fed what its own last blocks suggest (`Record`): one row counts, another reasons.
"""

from collections.abc import Sequence

_STRETCH = (
    4  # steps between two decisions; the first after a change is not counted, for its drafts are of another level
)
_PRICE = 120  # steps to the next trial of a level for each step's time that one has cost
_LEAST = 0.3  # steps' time that a trial is taken to cost, however well it went
_ALLOWANCE = 0.006  # of the time may be lost against plain decoding
_PURSE = 8.0  # steps' time that the purse holds: with the allowance, no 1,000 steps lose 2%
_MARGIN = 1.03  # by which another level must be better than the present one
_DOUBT = 0.4  # and, in steps, by what more while few of its own are known
_MEMORY = 60  # steps that a level's average goes over
_CROWD = 8  # rows that begin with plain decoding
_IDLE = 12  # steps after which a row that accepts nothing is tried again
_FADE = 0.8  # of what held at a time is remembered a block later


class Record:
    """What the last blocks of one row gave."""

    __slots__ = ("idle", "reach")

    def __init__(self) -> None:
        self.reach = float("inf")  # drafts that held at a time, of late
        self.idle = 0  # steps in which nothing was asked for

    def settle(self, fed: int, held: int) -> None:
        """A block of so many masks gave so many drafts that held."""
        if fed:
            self.reach = max(held, _FADE * min(self.reach, fed))

    def wants(self) -> int:
        """Masks that may be of use in the next step: a row whose text turns easy has all of them after a few blocks, and one
        that accepts nothing has one mask now and then."""
        masks = int(min(3 * self.reach + 0.5, 1 << 20))
        self.idle = 0 if masks else self.idle + 1
        return masks or int(self.idle % _IDLE == 0)


class _Level:
    """Tokens of a row and seconds of a step, of the steps of one level at one size of the batch."""

    def __init__(self, masks: int) -> None:
        self.masks = masks
        self.steps = 0.0
        self.tokens = self.seconds = 0.0  # sums that forget
        self.due = 0  # step from which it may have a trial

    def usual(self, seconds: float) -> float:
        """At most twice as long, or half as long, as a step of this level takes: a machine that stalls says nothing of it."""
        usual = self.seconds / self.steps if self.steps else seconds
        return min(max(seconds, usual / 2), usual * 2)

    def add(self, tokens: float, seconds: float) -> None:
        keep = 1 - 1 / _MEMORY
        self.steps, self.tokens, self.seconds = (
            keep * old + new for old, new in ((self.steps, 1.0), (self.tokens, tokens), (self.seconds, seconds))
        )

    def forget(self, share: float) -> None:
        self.steps, self.tokens, self.seconds = (share * v for v in (self.steps, self.tokens, self.seconds))

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0


class Pace:
    """Chooses the masks of each step. places: the most masks of a row."""

    def __init__(self, places: int) -> None:
        ladder = [0]
        while ladder[-1] < places:
            ladder.append(min(2 * ladder[-1] + 1, places))
        self._ladder = ladder
        self._sizes: dict[int, list[_Level]] = {}
        self._now = 0
        self._size = -1
        self._present = 0  # index of the level that is fed
        self._before = -1  # and of the step before; -1: another batch
        self._best = -1  # index of the level that trials are compared with
        self._left = 0  # steps of the stretch
        self._cost = 0.0  # of the trial so far
        self._purse = _PURSE

    def most(self, rows: int) -> int:
        """Masks of a row for a step of so many rows."""
        size = rows.bit_length()
        if size != self._size:
            self._size, self._left, self._before, self._best = size, 0, -1, -1
        if self._left <= 0:
            self._decide(rows)
        return self._ladder[self._present]

    def masks(self, rows: Sequence[Record]) -> list[int]:
        """Masks of each of these rows for the next step."""
        most = self.most(len(rows))
        return [min(most, row.wants()) for row in rows] if most else [0] * len(rows)

    def observe(self, rows: int, tokens: int, seconds: float | None) -> None:
        """A step of so many rows emitted so many tokens; seconds: None where something else was done meanwhile."""
        if rows.bit_length() != self._size:
            return
        self._now += 1
        self._left -= 1
        levels, gained = self._levels(), tokens / rows
        if seconds is None:
            self._before = -1
            return
        seconds = levels[self._present].usual(seconds)
        if self._before == self._present:
            levels[self._present].add(gained, seconds)
        plain = levels[0].rate
        if plain and (self._present or self._before > 0):
            self._purse += gained - seconds * plain
        self._purse = min(max(self._purse, -_PURSE) + _ALLOWANCE, _PURSE)
        if self._purse <= 0 and self._present:
            self._left = 0
        if self._best >= 0 and self._best != self._present:
            best = levels[self._best]
            self._cost += max(0.0, seconds - gained / best.rate) * best.steps / best.seconds if best.rate else 0.0
        self._before = self._present

    def _levels(self) -> list[_Level]:
        """Of the present size. A new one begins with what the nearest known one found, as far as it goes."""
        if self._size not in self._sizes:
            levels = [_Level(masks) for masks in self._ladder]
            near = min(self._sizes, key=lambda known: abs(known - self._size), default=None)
            if near is not None:
                for level, like in zip(levels, self._sizes[near], strict=True):
                    level.steps, level.tokens, level.seconds = like.steps, like.tokens, like.seconds
                    level.forget(2 / max(2.0, like.steps))
            self._sizes[self._size] = levels
        return self._sizes[self._size]

    def _doubt(self, level: _Level) -> float:
        """By what a level that few steps speak for must be better: a burst of other work on the machine is as long as they."""
        return 1.0 if level.masks == self._ladder[self._best] else 1 + _DOUBT / level.steps

    def _decide(self, rows: int) -> None:
        levels = self._levels()
        self._left = _STRETCH
        if self._best >= 0 and self._present != self._best:  # a trial has ended
            levels[self._present].due = self._now + int(_PRICE * max(self._cost, _LEAST))
        known = [i for i, level in enumerate(levels) if level.steps]
        if not known:
            self._present = self._best = 0 if rows >= _CROWD else len(levels) - 1
            self._left = _STRETCH if rows >= _CROWD else 2 * _STRETCH  # a first answer may be no longer
            return
        best = max(
            known, key=lambda i: levels[i].rate * (_MARGIN if i in (0, self._best) else 1) / self._doubt(levels[i])
        )
        if best != self._best:  # its neighbours may be better still
            for i in (best - 1, best + 1):
                if 0 <= i < len(levels):
                    levels[i].due = min(levels[i].due, self._now)
        self._best, self._cost = best, 0.0
        self._present = 0 if self._purse <= 0 else best
        rivals = {0, best - 1, best + 1} - {best, -1, len(levels)}
        if rows < _CROWD:
            rivals |= {len(levels) - 1} - {best}
        due = [i for i in rivals if levels[i].due <= self._now and (i == 0 or self._purse > _STRETCH / 2)]
        if due and self._present == best:
            self._present = min(due, key=lambda i: (levels[i].steps > 0, levels[i].due))
            if not levels[self._present].steps:
                self._left = _STRETCH + 2
