"""Intervals: what a number measured on some prompts says about all prompts. All are 95%, and all are deterministic."""

from collections.abc import Sequence
from math import comb, sqrt
from random import Random
from statistics import median
from typing import NamedTuple

_Z = 1.959964  # the normal distribution's 97.5% point


class Interval(NamedTuple):
    """A 95% interval, both ends included."""

    low: float
    high: float


class Ratio(NamedTuple):
    """A median of ratios. The interval is None below six pairs, where no two ratios bracket the median with 95%."""

    median: float
    interval: Interval | None


class Difference(NamedTuple):
    """A difference of two shares (0.01 is one point) with its interval."""

    value: float
    interval: Interval


def proportion_interval(successes: int, total: int) -> Interval:
    """Wilson's score interval of a share: unlike `p ± 1.96 s` it stays inside [0, 1] and is valid at 0 and 1.

    >>> proportion_interval(0, 100).high   # a bug never seen in 100 prompts may still occur in 3 to 4 of 100
    0.0369...
    """
    if not 0 <= successes <= total or total == 0:
        raise ValueError(f"{successes} successes of {total}: expected 0 <= successes <= total and total > 0")
    share = successes / total
    centre = share + _Z**2 / (2 * total)
    half = _Z * sqrt(share * (1 - share) / total + _Z**2 / (4 * total**2))
    scale = 1 + _Z**2 / total
    # At 0 and at 1 the formula gives the bound itself, apart from rounding.
    low = 0.0 if successes == 0 else (centre - half) / scale
    high = 1.0 if successes == total else (centre + half) / scale
    return Interval(low, high)


def ratio_interval(pairs: Sequence[tuple[float, float]]) -> Ratio:
    """The median of numerator / denominator over interleaved pairs, with the interval of its order statistics.

    Both halves of a pair are measured one after the other, so a machine whose speed drifts changes both and not their
    ratio. Each ratio is below the true median with chance 1/2, so the number of ratios below it is binomial. That alone
    gives the interval, without an assumption about how times are distributed and without random resampling.
    """
    if not pairs or min(min(pair) for pair in pairs) <= 0:
        raise ValueError("expected at least one pair, and only positive numbers in it")
    ratios = sorted(numerator / denominator for numerator, denominator in pairs)
    skipped = _skipped(len(ratios))
    interval = Interval(ratios[skipped - 1], ratios[-skipped]) if skipped else None
    return Ratio(median(ratios), interval)


def _skipped(n: int) -> int:
    """The largest d such that the d-th smallest and the d-th largest of n bracket the median with 95%; 0 if none."""
    d, below = 0, 0
    while 40 * (below + comb(n, d)) <= 2**n:  # at most 0.025 on each side; 2**n may not fit a float, so in integers
        below += comb(n, d)
        d += 1
    return d


def ratio_of_sums_interval(pairs: Sequence[tuple[float, float]], draws: int = 2000) -> Interval:
    """The interval of sum(numerators) / sum(denominators) over other prompts of this kind, by bootstrap over the pairs.

    For tokens per step, which sums both over prompts. The same input gives the same interval.
    """
    if not pairs or sum(denominator for _, denominator in pairs) <= 0:
        raise ValueError("expected at least one pair, and denominators that sum to more than 0")
    random = Random(0)
    ratios = []
    while len(ratios) < draws:
        numerator, denominator = map(sum, zip(*random.choices(pairs, k=len(pairs)), strict=True))
        if denominator > 0:
            ratios.append(numerator / denominator)
    ratios.sort()
    cut = draws // 40
    return Interval(ratios[cut], ratios[-cut - 1])


def mean_interval(values: Sequence[float], draws: int = 2000) -> Interval:
    """The interval of a mean: by bootstrap, or Wilson's for a share (values 0 and 1 only). The same input gives the same
    interval."""
    if all(value in (0, 1) for value in values):
        return proportion_interval(int(sum(values)), len(values))
    return _bootstrap_mean(values, draws)


def paired_difference(before: Sequence[float], after: Sequence[float], draws: int = 2000) -> Difference:
    """By how much the mean grade changed, on the same prompts before and after.

    Only prompts whose grade changed carry information, so pairing gives a narrower interval than two independent shares.
    For right and wrong answers the interval is Wald's for matched pairs, after half an observation is added to each of the
    four cells (Agresti and Min, 2005). It stays valid where few or no grades changed. For scores it is a bootstrap over the
    pairs. "Loses at most x" is `-interval.low <= x`.
    """
    if len(before) != len(after) or not before:
        raise ValueError(f"{len(before)} grades before and {len(after)} after: expected the same prompts, at least one")
    changes = [float(a) - float(b) for b, a in zip(before, after, strict=True)]
    n = len(changes)
    if any(value not in (0, 1) for value in (*before, *after)):
        return Difference(sum(changes) / n, _bootstrap_mean(changes, draws))
    gained, lost = changes.count(1), changes.count(-1)
    centre = (gained - lost) / (n + 2)
    changed = (gained + lost + 1) / (n + 2)
    half = _Z * sqrt((changed - centre**2) / (n + 2))
    return Difference((gained - lost) / n, Interval(max(-1.0, centre - half), min(1.0, centre + half)))


def mcnemar(before: Sequence[float], after: Sequence[float]) -> float:
    """The exact two-sided p-value of McNemar's test: if nothing had changed, how often would gains and losses be at least this
    unequal?"""
    gained = sum(a > b for b, a in zip(before, after, strict=True))
    lost = sum(b > a for b, a in zip(before, after, strict=True))
    n = gained + lost
    return min(1.0, 2 * sum(comb(n, i) for i in range(min(gained, lost) + 1)) / 2**n)


def _bootstrap_mean(values: Sequence[float], draws: int) -> Interval:
    random = Random(0)
    means = sorted(sum(random.choices(values, k=len(values))) / len(values) for _ in range(draws))
    cut = draws // 40
    return Interval(means[cut], means[-cut - 1])
