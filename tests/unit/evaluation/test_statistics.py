from itertools import product
from math import comb

import pytest

from multitoken.evaluation.statistics import (
    Interval,
    mcnemar,
    mean_interval,
    paired_difference,
    proportion_interval,
    ratio_interval,
    ratio_of_sums_interval,
)


def test_wilson_against_published_values() -> None:
    """Guards against a mistake in the formula. From Newcombe (1998), table I: 81 of 263, 15 of 148, 0 of 20, 1 of
    29."""
    for successes, total, low, high in [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ]:
        assert proportion_interval(successes, total) == pytest.approx((low, high), abs=5e-5)


def test_wilson_stays_honest_at_the_ends() -> None:
    """Guards against "0 errors of 100: 0% ± 0%", the interval of the textbook formula, and against bounds of -1e-18 or
    1 + 1e-16."""
    assert proportion_interval(0, 100).low == 0.0
    assert proportion_interval(0, 100).high == pytest.approx(0.0370, abs=5e-5)
    assert proportion_interval(100, 100).high == 1.0
    with pytest.raises(ValueError, match="3 successes of 2"):
        proportion_interval(3, 2)


def test_ratio_is_the_median_of_pairs_and_not_of_sums() -> None:
    """Guards against dividing totals: one pair measured on a busy machine would change the result from 2 to 0.88."""
    pairs = [(2.0, 1.0)] * 14 + [(2.0, 20.0)]
    assert ratio_interval(pairs) == (2.0, Interval(2.0, 2.0))


@pytest.mark.parametrize("n", [6, 7, 15, 20, 61])
def test_ratio_interval_covers_the_median_with_95_percent_and_no_wider(n: int) -> None:
    """Guards against an index that is off by one. The exact probability that the true median is outside is two binomial
    tails."""
    interval = ratio_interval([(float(i), 1.0) for i in range(1, n + 1)]).interval
    assert interval is not None
    d = int(interval.low)
    assert interval.high == n + 1 - d
    outside = sum(2 * comb(n, i) for i in range(d)) / 2**n
    one_step_narrower = sum(2 * comb(n, i) for i in range(d + 1)) / 2**n
    assert outside <= 0.05 < one_step_narrower


def test_ratio_interval_of_thousands_of_pairs() -> None:
    """2**n does not fit a float for n > 1023, and a measurement of an hour ended in an overflow. The normal
    approximation is 750 - 0.98 * sqrt(1500)."""
    interval = ratio_interval([(float(i), 1.0) for i in range(1, 1501)]).interval
    assert interval == Interval(712.0, 789.0)


def test_ratio_of_few_pairs_has_no_interval() -> None:
    """Guards against calling the range of five pairs (93.75%) a 95% interval."""
    assert ratio_interval([(3.0, 2.0)] * 5) == (1.5, None)
    with pytest.raises(ValueError, match="only positive"):
        ratio_interval([(1.0, 0.0)])


def test_paired_difference_counts_changes_only() -> None:
    """Guards against the unpaired interval, which would be nearly twice as wide because of 1,400 prompts right both
    times."""
    before = [True] * 1400 + [True] * 20 + [False] * 10 + [False] * 70
    after = [True] * 1400 + [False] * 20 + [True] * 10 + [False] * 70
    difference = paired_difference(before, after)
    assert difference.value == pytest.approx(-10 / 1500)
    # By hand: n* = 1502, centre -10/1502, changed 31/1502, half = 1.96 sqrt((31/1502 - centre^2) / 1502).
    assert difference.interval == pytest.approx((-0.013912, 0.000596), abs=1e-5)


def test_paired_difference_without_a_change_still_has_a_width() -> None:
    """Guards against "0.0 points, 95%: 0.0 to 0.0" from ten prompts."""
    value, interval = paired_difference([True] * 10, [True] * 10)
    assert value == 0.0
    assert interval.low < -0.1 < 0.1 < interval.high
    with pytest.raises(ValueError, match="1 grades before and 2 after"):
        paired_difference([True], [True, False])


def test_paired_difference_stays_within_its_range() -> None:
    """Guards against an interval that goes beyond ±1 or does not contain its own estimate, on every tiny sample."""
    for n in (1, 2, 3):
        for grades in product([False, True], repeat=2 * n):
            value, (low, high) = paired_difference(grades[:n], grades[n:])
            assert -1.0 <= low <= value <= high <= 1.0


def test_ratio_of_sums_weighs_prompts_by_their_steps() -> None:
    """Guards against the mean of rates, in which a two-token answer counts as much as a long one, and against an
    interval that changes from run to run. Twenty prompts have 3 tokens in 1 step, and twenty have 40 tokens in 20
    steps: 860 / 420."""
    pairs = [(3.0, 1.0)] * 20 + [(40.0, 20.0)] * 20
    low, high = ratio_of_sums_interval(pairs)
    assert low < 860 / 420 < high < 2.2
    assert ratio_of_sums_interval(pairs) == (low, high)
    assert ratio_of_sums_interval([(4.0, 2.0)] * 5) == (2.0, 2.0)
    with pytest.raises(ValueError, match="more than 0"):
        ratio_of_sums_interval([(0.0, 0.0)])


def test_scores_between_0_and_1_are_resampled() -> None:
    """Guards against a formula for proportions on scores other than 0 and 1, and against an interval that changes from
    run to run."""
    before, after = [0.5, 0.25] * 50, [0.5, 0.5] * 50
    difference = paired_difference(before, after)
    assert difference.value == pytest.approx(0.125)
    assert 0.09 < difference.interval.low < 0.125 < difference.interval.high < 0.16
    assert paired_difference(before, after) == difference
    assert mean_interval([1, 0, 1]) == proportion_interval(2, 3)
    low, high = mean_interval(before)
    assert 0.34 < low < 0.375 < high < 0.41


def test_mcnemar_by_hand() -> None:
    """Guards against counting unchanged prompts. 1 gained, 5 lost: 2 (1 + 6) / 64."""
    before = [False] + [True] * 5 + [True] * 90
    after = [True] + [False] * 5 + [True] * 90
    assert mcnemar(before, after) == pytest.approx(14 / 64)
    assert mcnemar([True] * 5, [True] * 5) == 1.0
