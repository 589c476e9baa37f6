"""Runs of easy tokens, the line through the calibration's points, and the estimate made of both."""

import random
from dataclasses import replace

import pytest

from multitoken.errors import DataError
from multitoken.evaluation.estimate import FEWEST_PROMPTS, count_runs, estimate, summarise
from multitoken.evaluation.gain_calibration import Calibration, Point, load_calibration, read_points, write_points
from multitoken.evaluation.own_predictions import OwnPredictions

POINT = Point("p", "m", 1000, 16, 48, 0.5, 0.6, 2.0, 3.0)


def line(*pairs: tuple[float, float]) -> Calibration:
    return Calibration(tuple(replace(POINT, run_length=x, tokens_per_step=y) for x, y in pairs))


def response(*probabilities: float) -> OwnPredictions:
    return OwnPredictions(tuple(1 - p for p in probabilities), probabilities)


def count_slowly(easy: list[bool], k: int) -> int:
    """Step by step, as Exact would go: drafts while they are easy, and one token more."""
    steps = 0
    while easy:
        drafts = 0
        while drafts < k - 1 and drafts < len(easy) and easy[drafts]:
            drafts += 1
        easy = easy[drafts + 1 :]
        steps += 1
    return steps


def test_runs_are_the_steps_that_exact_would_take() -> None:
    """Off by one at a block's end, or at the end of the response, would bias every estimate."""
    e, h = True, False
    assert count_runs([e, e, h, e, h, h, e, e], 4) == 4
    assert count_runs([], 4) == 0 and count_runs([h] * 5, 4) == 5 and count_runs([e] * 9, 4) == 3
    draw = random.Random(1)
    for _ in range(300):
        easy = [draw.random() < 0.8 for _ in range(draw.randrange(30))]
        k = draw.randint(1, 6)
        assert count_runs(easy, k) == count_slowly(easy, k)


def test_summary_counts_all_but_each_first_token() -> None:
    """The prefill emits the first token whatever the policy: counting it would reward short responses."""
    found = summarise([response(0.1, 0.95, 0.5), response(0.2), response(0.3, 0.9)], k=4)
    assert (found.prompts, found.tokens) == (3, 3)
    assert found.easy_share == pytest.approx(2 / 3) and found.entropy == pytest.approx((0.05 + 0.5 + 0.1) / 3)
    assert found.run_length == pytest.approx(3 / 2)  # runs: |0.95 0.5| |0.9|


def test_responses_that_end_at_once_are_refused() -> None:
    """Division by the zero tokens that are left would be a traceback."""
    with pytest.raises(DataError, match="ends each of its 9 responses at once"):
        estimate([response(0.5)] * 9, 16, load_calibration())


def test_too_few_prompts_are_refused() -> None:
    """A bootstrap of one prompt would claim that prompts do not differ."""
    with pytest.raises(DataError, match=f"from 7 prompts .* at least {FEWEST_PROMPTS}"):
        estimate([response(0.5, 0.9)] * 7, 16, load_calibration())


@pytest.mark.parametrize("k", [2, 4, 16])
@pytest.mark.parametrize(
    "calibration", [load_calibration(), line((1.1, 9.0), (3.0, 4.0), (9.0, 1.5)), line((2, 1), (3, 5), (4, 60))]
)
def test_expectation_rises_with_easy_tokens_and_stays_between_one_and_k(k: int, calibration: Calibration) -> None:
    """More than a block a step, less than one token, or less gain for a surer model would be nonsense."""
    expected = [calibration.expected(1 + i * (k - 1) / 20, k) for i in range(21)]
    assert expected == sorted(expected) and expected[0] >= 1 and expected[-1] <= k
    found = [estimate([response(0.5, *[p] * 12, 0.5)] * 9, k, calibration) for p in (0.5, 0.95)]
    assert found[0].tokens_per_step <= found[1].tokens_per_step
    for one in found:
        assert 1 <= one.interval.low <= one.tokens_per_step <= one.interval.high <= k


def test_line_is_found_again_and_the_interval_holds_what_it_promises() -> None:
    """Points drawn around a known line: the slope comes back, and 95% of new adaptations fall into the interval."""
    draw, inside = random.Random(2), 0
    for _ in range(60):
        lengths = [draw.uniform(1.2, 10) for _ in range(6)]
        gains = [1 + 0.8 * x**0.7 * draw.lognormvariate(0, 0.3) for x in (*lengths, 3.0)]
        calibration = line(*zip(lengths, gains[:-1], strict=True))
        draws = sorted(calibration.draw(3.0, 10**6, draw) for _ in range(400))
        inside += draws[10] <= gains[-1] <= draws[-11]
    assert inside >= 52  # 57 of 60 expected; fewer than 52 would be a chance of 1 in 100
    exact = line(*((x, 1 + 0.8 * x**0.7) for x in (1.5, 3.0, 9.0)))
    assert exact.slope == pytest.approx(0.7) and exact.expected(5.0, 16) == pytest.approx(1 + 0.8 * 5**0.7)


def test_interval_widens_with_the_prompts_and_away_from_the_points() -> None:
    """An interval of the calibration alone would hide that eight mixed prompts say little."""
    calibration = line((1.5, 2.0), (3.0, 3.1), (6.0, 5.0), (9.0, 7.5))

    def width(responses: list[OwnPredictions]) -> float:
        low, high = estimate(responses, 16, calibration).interval
        return high - low

    even = [response(0.5, *[0.95] * 3, 0.5)] * 10
    mixed = [response(0.5, *[0.5] * 4), response(0.5, *[0.95] * 24)] * 5
    assert width(mixed) > 1.5 * width(even)
    assert not estimate(even, 16, calibration).extrapolated
    assert estimate([response(*[0.5] * 4)] * 8, 16, calibration).extrapolated
    assert estimate(even, 16, calibration) == estimate(even, 16, calibration)


def test_committed_points_are_whole_and_a_file_is_read_as_it_was_written() -> None:
    """A hand-edited or half-written calibration would foretell from nonsense."""
    committed = load_calibration()
    assert len(committed.points) >= 5 and committed.slope > 0
    for p in committed.points:
        assert 1 <= p.run_length <= p.k and 1 <= p.tokens_per_step <= p.k and 0 <= p.easy_share <= 1 and p.entropy > 0
    assert read_points(write_points(committed.points, {})) == committed
    with pytest.raises(ValueError, match="at least 3"):
        Calibration(committed.points[:2])
