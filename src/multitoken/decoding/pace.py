"""How many masks and branches to feed: what gives most tokens a second on the live traffic itself. Nothing is predicted.

Under Exact the output does not depend on the number of masks, so it may be chosen freely; a policy whose tokens are final
would write another text, so only verified policies are paced.

A *level* is what a row is fed at most: 0 masks (plain decoding), 1, 3, 7, ..., all, and all with branches, which pay where
a pass takes hardly longer for more tokens. For each level, and each size of the batch, the tokens a second of its own steps are
kept, old ones forgotten. The best level is fed. In between, the levels beside it, all masks and plain decoding have trials of a
few steps, the more often the less they cost: a trial that loses the time of one step is repeated after `_PRICE` steps. Branches
have trials only where a step with all masks takes little longer than a plain one. A *purse*, one for crowds and one for few rows, holds what masks have won against plain decoding, up
to some steps' time, and a small allowance: while it is empty nothing but plain decoding is fed, whatever was measured. Sizes share it,
for requests that come and go pass through all of them, and what each might lose would add up.

Within a level each row is fed what its own last blocks suggest (`Record`): one row counts, another reasons.
"""

from collections.abc import Sequence
from typing import NamedTuple

# Steps. A stretch lies between two decisions; its first step is not counted, for its drafts are of another level.
_STRETCH = 4
_TRIAL = 24.0  # after which a trial has shown what it can
_PRICE = 120  # to the next trial of a level, for each step's time that one has cost
_IDLE = 12  # after which a row that accepts nothing is tried again
_MEMORY = 60  # that a level's average goes over
_STALE, _LITTLE = 100, 6.0  # after which an average counts for no more than so many
_SETTLED = 20.0  # from which on an average moves with the machine, and not by chance
_CHEAP = 1.5  # plain ones: where one with all masks takes longer, branches cannot pay and have no trials

# Steps' time, of plain decoding.
_LEAST, _MOST = 0.3, 6.0  # that a trial is taken to cost, however it went
_PURSE, _PURSE_OF_FEW = 10.0, 9.0  # in a new purse: with the allowance, no first 1,000 steps lose 2%
_FULL = 30.0  # in a full one
_FARE, _DEBT = 5.0, -2.0  # that a trial must find in it, and may leave: its first step has masks to pay, and no drafts
_ALLOWANCE = 0.006  # that a step adds to it: the share that may be lost against plain decoding

# Rows. A crowd begins with plain decoding; fewer rows do if they come after a crowd.
_CROWD, _MANY = 8, 16

# Ratios by which another level must be better than the present one, and masks than plain decoding. The latter is higher with many
# rows, whose steps differ by who joins and leaves more than masks win, and the first while few steps of a level are known.
_MARGIN, _MARGIN_OF_MANY = 1.03, 1.1
_DOUBT = 0.4  # more, divided by these steps

_FADE = 0.65  # of what held at a time is remembered a block later


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


class Level(NamedTuple):
    """What a row is fed at most: masks behind all of its drafts, and blocks behind some of them (`branches`)."""

    masks: int
    branches: int = 0


class _Tally:
    """Tokens of a row and seconds of a step, of the steps of one level at one size of the batch."""

    def __init__(self) -> None:
        self.steps = 0.0
        self.tokens = self.seconds = 0.0  # sums that forget
        self.due = 0  # step from which it may have a trial
        self.seen = 0  # step that was added last

    def usual(self, seconds: float) -> float:
        """At most twice as long as a step of this level takes: a machine that stalls says nothing of it."""
        return min(seconds, 2 * self.seconds / self.steps) if self.steps else seconds

    def add(self, tokens: float, seconds: float, now: int) -> None:
        if now - self.seen > _STALE:
            self.forget(min(1.0, _LITTLE / max(self.steps, 1.0)))
        self.seen = now
        keep = 1 - 1 / _MEMORY
        self.steps, self.tokens, self.seconds = (
            keep * old + new for old, new in ((self.steps, 1.0), (self.tokens, tokens), (self.seconds, seconds))
        )

    def forget(self, share: float) -> None:
        self.steps, self.tokens, self.seconds = (share * v for v in (self.steps, self.tokens, self.seconds))

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0


class _Size:
    """What is known of batches of one size."""

    def __init__(self, levels: int) -> None:
        self.levels = [_Tally() for _ in range(levels)]

    @property
    def plain_step(self) -> float | None:
        """Seconds of a step of plain decoding, if known."""
        plain = self.levels[0]
        return plain.seconds / plain.steps if plain.steps else None


class Pace:
    """Chooses what each step is fed. places: the most masks of a row; branches: of a row, worth a trial beside all masks."""

    def __init__(self, places: int, branches: int = 0) -> None:
        ladder = [Level(0)]
        while ladder[-1].masks < places:
            ladder.append(Level(min(2 * ladder[-1].masks + 1, places)))
        self._all = len(ladder) - 1  # index of all masks without branches
        self._ladder = [*ladder, Level(places, branches)] if 0 < branches < places else ladder
        self._sizes: dict[int, _Size] = {}
        self._purses = [_PURSE_OF_FEW, _PURSE]  # in steps of plain decoding of the size that was there last
        self._now = 0
        self._size = -1
        self._present = 0  # index of the level that is fed
        self._before = -1  # and of the step before; -1: another batch
        self._best = -1  # index of the level that trials are compared with
        self._left = 0  # steps of the stretch
        self._cost = 0.0  # of the trial so far

    @property
    def most_branches(self) -> int:
        """Branches that a row may be fed at some time."""
        return self._ladder[-1].branches

    def level(self, rows: int) -> Level:
        """For a step of so many rows."""
        size = rows.bit_length()
        if size != self._size:
            self._change(size)
        if self._left <= 0:
            self._decide(rows)
        return self._ladder[self._present]

    def masks(self, rows: Sequence[Record]) -> list[int]:
        """Masks of each of these rows for the next step."""
        most, branches = self.level(len(rows))
        if not most or branches:  # where branches pay, tokens cost next to nothing, and no row need be spared any
            return [most] * len(rows)
        return [min(most, row.wants()) for row in rows]

    def _change(self, size: int) -> None:
        """To another size. What is in the purse stays worth the same time."""
        if _is_crowd(size) == _is_crowd(self._size):
            before, after = (self._sizes[s].plain_step if s in self._sizes else None for s in (self._size, size))
            if before and after:
                self._purses[_is_crowd(size)] *= before / after
        self._size, self._left, self._before, self._best = size, 0, -1, -1

    @property
    def _purse(self) -> float:
        return self._purses[_is_crowd(self._size)]

    def _put(self, won: float) -> None:
        """Into the purse, with the allowance of a step. won: steps' time, less than 0 where it was lost."""
        self._purses[_is_crowd(self._size)] = min(max(self._purse + won, -_PURSE) + _ALLOWANCE, _FULL)

    def observe(self, rows: int, tokens: int, seconds: float | None) -> None:
        """A step of so many rows emitted so many tokens; seconds: None where something else was done meanwhile."""
        if rows.bit_length() != self._size:
            return
        self._now += 1
        self._left -= 1
        here, gained = self._here(), tokens / rows
        levels = here.levels
        if seconds is None:
            self._before = -1
            return
        seconds = levels[self._present].usual(seconds)
        if self._before == self._present:
            self._add(levels, gained, seconds)
        plain = levels[0].rate
        self._put(gained - seconds * plain if plain and (self._present or self._before > 0) else 0.0)
        if self._purse <= _DEBT and self._present:
            self._left = 0
        if self._best >= 0 and self._best != self._present:
            best = levels[self._best]
            self._cost += max(0.0, seconds - gained / best.rate) * best.steps / best.seconds if best.rate else 0.0
        self._before = self._present

    def _add(self, levels: list[_Tally], gained: float, seconds: float) -> None:
        """To the present level. Where the machine as a whole becomes slower or faster, the best level shows it, and what is known
        of the others moves along."""
        present = levels[self._present]
        before = present.seconds / present.steps if present.steps > _SETTLED else 0.0
        present.add(gained, seconds, self._now)
        if before and self._present == self._best:
            drift = present.seconds / present.steps / before
            for level in levels:
                level.seconds *= 1.0 if level is present else drift

    def _here(self) -> _Size:
        """Of the present size. A new one begins with what the nearest known one found, as far as it goes: crowds tell of crowds."""
        if self._size not in self._sizes:
            here = _Size(len(self._ladder))
            alike = [known for known in self._sizes if _is_crowd(known) == _is_crowd(self._size)]
            near = min(alike, key=lambda known: abs(known - self._size), default=None)
            if near is not None:
                for level, like in zip(here.levels, self._sizes[near].levels, strict=True):
                    level.steps, level.tokens, level.seconds = like.steps, like.tokens, like.seconds
                    level.forget(2 / max(2.0, like.steps))
            self._sizes[self._size] = here
        return self._sizes[self._size]

    def _doubt(self, levels: list[_Tally], i: int) -> float:
        """By what a level that few steps speak for must be better: a burst of other work on the machine is as long as they."""
        return 1.0 if i == self._best else 1 + _DOUBT / levels[i].steps

    def _tries_branches(self, levels: list[_Tally]) -> bool:
        plain, full = levels[0], levels[self._all]
        cheap = plain.steps and full.steps and full.seconds / full.steps < _CHEAP * plain.seconds / plain.steps
        return bool(self.most_branches and cheap)

    def _decide(self, rows: int) -> None:
        here = self._here()
        levels = here.levels
        self._left = _STRETCH
        if self._best >= 0 and self._present != self._best:  # a trial has ended
            trial, best = levels[self._present], levels[self._best]
            if (
                self._purse > _DEBT
                and trial.steps < _TRIAL
                and trial.rate > best.rate > trial.rate / self._doubt(levels, self._present)
            ):
                return  # it is ahead: let it go on until that is no chance
            rivals = 2 + self._tries_branches(levels) if self._best else self._all  # they share what trials may cost
            levels[self._present].due = self._now + int(rivals / 2 * _PRICE * min(max(self._cost, _LEAST), _MOST))
        known = [i for i, level in enumerate(levels) if level.steps]
        if not known:
            is_first = rows < _CROWD and len(self._sizes) == 1  # a first answer may be no longer than the stretch
            self._present = self._best = self._all if is_first else 0
            self._left = 2 * _STRETCH if is_first else _STRETCH
            return
        plain = _MARGIN_OF_MANY if rows >= _MANY else _MARGIN
        margins = {self._best: _MARGIN, 0: plain}
        best = max(known, key=lambda i: levels[i].rate * margins.get(i, 1.0) / self._doubt(levels, i))
        if best != self._best:  # its neighbours may be better still
            for i in (best - 1, best + 1):
                if 0 <= i < len(levels):
                    levels[i].due = min(levels[i].due, self._now)
        self._best, self._cost = best, 0.0
        self._present = 0 if self._purse <= _DEBT else best
        # From plain decoding on, speed need not climb with every mask: the first one may cost more than all others.
        rivals = {0, best - 1, best + 1} - {best, -1, len(levels)} if best else set(range(1, self._all + 1))
        if rows < _CROWD:
            rivals |= {self._all} - {best}
        if not self._tries_branches(levels):
            rivals -= {self._all + 1}
        due = [i for i in rivals if levels[i].due <= self._now and (i == 0 or self._purse > _FARE)]
        if due and self._present == best:
            middle = self._all - 1
            self._present = min(due, key=lambda i: (levels[i].steps > 0, levels[i].due, abs(i - middle)))
            if not levels[self._present].steps:
                self._left = _STRETCH + 2


def _is_crowd(size: int) -> bool:
    return size >= _CROWD.bit_length()
