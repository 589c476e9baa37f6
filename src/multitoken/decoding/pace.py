"""Chooses how many masks and branches to feed, by measuring what gives the most tokens per second on the live traffic.

Nothing is predicted: there is no model of step times. Under Exact the output does not depend on the number of masks, so the number
can be chosen freely. A policy whose tokens are final would write another text, so only policies that verify are paced.

Levels. A *level* is the most that a row is fed in a step: 0 masks (plain decoding), 1, 3, 7, ... up to all masks, and all masks with
branches. Branches pay off where a pass takes hardly longer for more tokens.

Measurements. Each level has running averages of the tokens per row and of the seconds per step, taken from its own steps only. They
are kept per size of the batch, where sizes are grouped by powers of two. Tokens divided by seconds are the *rate* of a level.

Decisions. Every few steps `_decide` finds the *best* level, which has the highest rate. To replace the previous best, a level must be
better by a margin, and a larger margin applies while few of its steps are known. Masks must also be better than plain decoding by a
margin. Then the best level is fed, or another level has a *trial* of a few steps. The candidates for trials are the levels next to
the best, plain decoding and, with few rows, all masks. If plain decoding is best, every number of masks is a candidate. Branches
are a candidate only if a step with all masks takes little longer than a plain one.

Cost of trials. A trial costs the time that it loses against the best level. The more it costs, the later it is repeated: a trial that
loses the time of one step is repeated after `_PAUSE_PER_COST` steps, or later if there are more than two candidates.

Budget. It limits how much slower than plain decoding the choices can be. It is counted in steps of plain decoding. Time that masks win
against plain decoding is added to it, up to a maximum, and time that they lose is subtracted. Every step adds a small amount more. A
trial of a level with masks needs a budget above `_TRIAL_BUDGET`. At `_PLAIN_BUDGET` or less, only plain decoding is fed, whatever
was measured. There is one budget for batches of many rows and one for batches of few rows. The sizes of each group share it: as
requests come and go, a batch passes through many sizes, and the losses allowed to each would add up.

Rows. Within a level, each row is fed as many masks as its own last blocks suggest (`Record`), because one row may be counting while
another reasons.
"""

from collections.abc import Sequence
from typing import NamedTuple

# Steps. A step that follows a step of another level is not measured, because its drafts come from that level.
_DECISION_INTERVAL = 4  # between two decisions
_MAX_TRIAL_STEPS = 24.0  # after these, a trial has shown what it can
_PAUSE_PER_COST = 120  # before the next trial of a level, for each step's time that its last trial cost
_IDLE_STEPS = 12  # after which a row that accepts nothing is given a mask again
_AVERAGE_STEPS = 60  # over which a level's running averages go
_STALE_STEPS, _STALE_WEIGHT = 100, 6.0  # an average not updated for more than 100 steps counts as 6 steps at most
_STABLE_STEPS = 20.0  # from this many on, an average changes because the machine does, and not by chance

# Times a plain step: if a step with all masks takes longer than this, branches cannot pay off and have no trials.
_BRANCHES_MAX_RATIO = 1.5

# In steps of the best level: bounds of what a trial is taken to cost.
_MIN_TRIAL_COST, _MAX_TRIAL_COST = 0.3, 6.0

# The budget, in steps of plain decoding.
_START_BUDGET, _START_BUDGET_FEW_ROWS = 10.0, 9.0  # with `_BUDGET_PER_STEP`, the first 1,000 steps never lose 2%
_MIN_BUDGET, _MAX_BUDGET = -10.0, 30.0
# A trial may lower the budget from more than the first to the second: its first step feeds masks but has no drafts yet.
_TRIAL_BUDGET, _PLAIN_BUDGET = 5.0, -2.0
_BUDGET_PER_STEP = 0.006  # added in every step: the share of time that may be lost against plain decoding

# Rows. Batches of `_MANY_ROWS` or more begin with plain decoding. So do smaller ones if they come after such a batch.
_MANY_ROWS, _HIGH_MARGIN_ROWS = 8, 16

# Ratios by which another level must be better than the best one, and masks better than plain decoding. The second ratio is higher from
# `_HIGH_MARGIN_ROWS` on, where steps differ more by which rows join and leave than by what masks win. The first ratio is higher while
# few steps of a level are known.
_MARGIN, _HIGH_MARGIN = 1.03, 1.1
_UNCERTAINTY = 0.4  # divided by the number of these steps, and added

_REACH_DECAY = 0.65  # how much of `Record.reach` is left after another block


class Record:
    """What the last blocks of one row gave."""

    __slots__ = ("idle", "reach")

    def __init__(self) -> None:
        self.reach = float("inf")  # how many drafts held in one step, recently
        self.idle = 0  # steps since a mask was last wanted

    def settle(self, fed: int, held: int) -> None:
        """Record a block of `fed` masks, of whose drafts `held` held."""
        if fed:
            self.reach = max(held, _REACH_DECAY * min(self.reach, fed))

    def wants(self) -> int:
        """How many masks may be useful in the next step. A row whose text becomes easy has all masks after a few blocks, and
        a row that accepts nothing has one mask now and then."""
        masks = int(min(3 * self.reach + 0.5, 1 << 20))
        self.idle = 0 if masks else self.idle + 1
        return masks or int(self.idle % _IDLE_STEPS == 0)


class Level(NamedTuple):
    """The most that a row is fed: masks after all of its drafts, and the number of branches, which follow some of them."""

    masks: int
    branches: int = 0


class _LevelStats:
    """Tokens per row and seconds per step, of the steps of one level at one size of the batch."""

    def __init__(self) -> None:
        self.steps = 0.0
        self.tokens = self.seconds = 0.0  # decaying sums, as is `steps`
        self.next_trial = 0  # the step from which on it may have a trial
        self.last_step = 0  # the step that was added last

    def clipped(self, seconds: float) -> float:
        """At most twice the average time of a step of this level: a stall of the machine says nothing about the level."""
        return min(seconds, 2 * self.seconds / self.steps) if self.steps else seconds

    def add(self, tokens: float, seconds: float, now: int) -> None:
        if now - self.last_step > _STALE_STEPS:
            self.scale(min(1.0, _STALE_WEIGHT / max(self.steps, 1.0)))
        self.last_step = now
        keep = 1 - 1 / _AVERAGE_STEPS
        self.steps, self.tokens, self.seconds = (
            keep * old + new for old, new in ((self.steps, 1.0), (self.tokens, tokens), (self.seconds, seconds))
        )

    def scale(self, share: float) -> None:
        """Reduce the weight of what is known to this share. The averages stay the same."""
        self.steps, self.tokens, self.seconds = (share * v for v in (self.steps, self.tokens, self.seconds))

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0


class _SizeStats:
    """What is known about batches of one size."""

    def __init__(self, levels: int) -> None:
        self.levels = [_LevelStats() for _ in range(levels)]

    @property
    def plain_step(self) -> float | None:
        """Seconds of a step of plain decoding, if known."""
        plain = self.levels[0]
        return plain.seconds / plain.steps if plain.steps else None


class Pace:
    """Chooses what each step is fed. places: the most masks of a row; branches: how many branches of a row are worth a trial
    in addition to all masks."""

    def __init__(self, places: int, branches: int = 0) -> None:
        ladder = [Level(0)]
        while ladder[-1].masks < places:
            ladder.append(Level(min(2 * ladder[-1].masks + 1, places)))
        self._all_masks = len(ladder) - 1  # index of the level of all masks without branches
        self._ladder = [*ladder, Level(places, branches)] if 0 < branches < places else ladder
        self._sizes: dict[int, _SizeStats] = {}
        # [few rows, many rows], in steps of plain decoding of the last size in that group.
        self._budgets = [_START_BUDGET_FEW_ROWS, _START_BUDGET]
        self._now = 0
        self._size = -1
        self._current = 0  # index of the level that is fed
        self._previous = -1  # index of the level of the step before; -1: it was another batch, or it was not timed
        self._best = -1  # index of the level that trials are compared with
        self._steps_left = 0  # until the next decision
        self._trial_cost = 0.0  # of the trial so far

    @property
    def most_branches(self) -> int:
        """The most branches that a row may ever be fed."""
        return self._ladder[-1].branches

    def level(self, rows: int) -> Level:
        """The level for a step of this many rows."""
        size = rows.bit_length()
        if size != self._size:
            self._change_size(size)
        if self._steps_left <= 0:
            self._decide(rows)
        return self._ladder[self._current]

    def masks(self, rows: Sequence[Record]) -> list[int]:
        """How many masks each of these rows is fed in the next step."""
        most, branches = self.level(len(rows))
        if not most or branches:  # where branches pay off, tokens cost almost nothing, so every row has all masks
            return [most] * len(rows)
        return [min(most, row.wants()) for row in rows]

    def _change_size(self, size: int) -> None:
        """Change to another size of the batch. The budget is converted, so that it stays worth the same time."""
        if _has_many_rows(size) == _has_many_rows(self._size):
            before, after = (self._sizes[s].plain_step if s in self._sizes else None for s in (self._size, size))
            if before and after:
                self._budgets[_has_many_rows(size)] *= before / after
        self._size, self._steps_left, self._previous, self._best = size, 0, -1, -1

    @property
    def _budget(self) -> float:
        return self._budgets[_has_many_rows(self._size)]

    def _update_budget(self, won: float) -> None:
        """Add `won` and what every step adds. won: in steps of plain decoding, negative if time was lost."""
        self._budgets[_has_many_rows(self._size)] = min(
            max(self._budget + won, _MIN_BUDGET) + _BUDGET_PER_STEP, _MAX_BUDGET
        )

    def observe(self, rows: int, tokens: int, seconds: float | None) -> None:
        """Record that a step of `rows` rows emitted `tokens` tokens in all. seconds: None if other work was done meanwhile."""
        if rows.bit_length() != self._size:
            return
        self._now += 1
        self._steps_left -= 1
        stats, gained = self._stats(), tokens / rows
        levels = stats.levels
        if seconds is None:
            self._previous = -1
            return
        seconds = levels[self._current].clipped(seconds)
        if self._previous == self._current:
            self._add(levels, gained, seconds)
        plain = levels[0].rate
        self._update_budget(gained - seconds * plain if plain and (self._current or self._previous > 0) else 0.0)
        if self._budget <= _PLAIN_BUDGET and self._current:
            self._steps_left = 0
        if self._best >= 0 and self._best != self._current:
            best = levels[self._best]
            self._trial_cost += max(0.0, seconds - gained / best.rate) * best.steps / best.seconds if best.rate else 0.0
        self._previous = self._current

    def _add(self, levels: list[_LevelStats], gained: float, seconds: float) -> None:
        """Add a step to the current level. If the best level becomes slower or faster, the machine as a whole does, so the
        times of the other levels are scaled by the same factor."""
        current = levels[self._current]
        before = current.seconds / current.steps if current.steps > _STABLE_STEPS else 0.0
        current.add(gained, seconds, self._now)
        if before and self._current == self._best:
            drift = current.seconds / current.steps / before
            for level in levels:
                level.seconds *= 1.0 if level is current else drift

    def _stats(self) -> _SizeStats:
        """The statistics of the current size. A new size begins with those of the nearest known size of its group (many rows or
        few rows), if there is one. They count as two steps at most."""
        if self._size not in self._sizes:
            stats = _SizeStats(len(self._ladder))
            alike = [known for known in self._sizes if _has_many_rows(known) == _has_many_rows(self._size)]
            near = min(alike, key=lambda known: abs(known - self._size), default=None)
            if near is not None:
                for level, like in zip(stats.levels, self._sizes[near].levels, strict=True):
                    level.steps, level.tokens, level.seconds = like.steps, like.tokens, like.seconds
                    level.scale(2 / max(2.0, like.steps))
            self._sizes[self._size] = stats
        return self._sizes[self._size]

    def _uncertainty(self, levels: list[_LevelStats], i: int) -> float:
        """The factor by which a level must be better because few of its steps are known: a burst of other work on the machine
        can last as long as these steps."""
        return 1.0 if i == self._best else 1 + _UNCERTAINTY / levels[i].steps

    def _tries_branches(self, levels: list[_LevelStats]) -> bool:
        plain, full = levels[0], levels[self._all_masks]
        cheap = (
            plain.steps and full.steps and full.seconds / full.steps < _BRANCHES_MAX_RATIO * plain.seconds / plain.steps
        )
        return bool(self.most_branches and cheap)

    def _decide(self, rows: int) -> None:
        """Choose the level of the next steps: the best, or one that has a trial."""
        stats = self._stats()
        levels = stats.levels
        self._steps_left = _DECISION_INTERVAL
        if self._best >= 0 and self._current != self._best:  # a trial has ended
            trial, best = levels[self._current], levels[self._best]
            if (
                self._budget > _PLAIN_BUDGET
                and trial.steps < _MAX_TRIAL_STEPS
                and trial.rate > best.rate > trial.rate / self._uncertainty(levels, self._current)
            ):
                return  # it is ahead, perhaps by chance: let it go on until this is certain
            # The candidates share what trials may cost.
            candidates = 2 + self._tries_branches(levels) if self._best else self._all_masks
            levels[self._current].next_trial = self._now + int(
                candidates / 2 * _PAUSE_PER_COST * min(max(self._trial_cost, _MIN_TRIAL_COST), _MAX_TRIAL_COST)
            )
        known = [i for i, level in enumerate(levels) if level.steps]
        if not known:
            # The first answer of all may be no longer than the steps to the next decision, so it has all masks at once.
            is_first = rows < _MANY_ROWS and len(self._sizes) == 1
            self._current = self._best = self._all_masks if is_first else 0
            self._steps_left = 2 * _DECISION_INTERVAL if is_first else _DECISION_INTERVAL
            return
        plain = _HIGH_MARGIN if rows >= _HIGH_MARGIN_ROWS else _MARGIN
        margins = {self._best: _MARGIN, 0: plain}
        best = max(known, key=lambda i: levels[i].rate * margins.get(i, 1.0) / self._uncertainty(levels, i))
        if best != self._best:  # the levels next to it may be better still
            for i in (best - 1, best + 1):
                if 0 <= i < len(levels):
                    levels[i].next_trial = min(levels[i].next_trial, self._now)
        self._best, self._trial_cost = best, 0.0
        self._current = 0 if self._budget <= _PLAIN_BUDGET else best
        # From plain decoding, speed need not rise with every mask: the first mask may cost more than all others. So try all levels.
        candidates = {0, best - 1, best + 1} - {best, -1, len(levels)} if best else set(range(1, self._all_masks + 1))
        if rows < _MANY_ROWS:
            candidates |= {self._all_masks} - {best}
        if not self._tries_branches(levels):
            candidates -= {self._all_masks + 1}
        due = [i for i in candidates if levels[i].next_trial <= self._now and (i == 0 or self._budget > _TRIAL_BUDGET)]
        if due and self._current == best:
            # First the levels without measurements, then the ones that have waited longest.
            middle = self._all_masks - 1
            self._current = min(due, key=lambda i: (levels[i].steps > 0, levels[i].next_trial, abs(i - middle)))
            if not levels[self._current].steps:
                self._steps_left = _DECISION_INTERVAL + 2


def _has_many_rows(size: int) -> bool:
    return size >= _MANY_ROWS.bit_length()
