import pytest

from multitoken.evaluation.promise import p_value, prompts_needed, upper_bound


def test_the_binomial_test_by_hand() -> None:
    """Guards against an approximation that promises too much with few prompts. 0.99^299 = 0.0495, and 0.99^298 is above
    0.05."""
    assert p_value([0] * 299, 0.01) == pytest.approx(0.99**299)
    assert p_value([0] * 298, 0.01) > 0.05
    assert p_value([1] + [0] * 9, 0.2) == pytest.approx(0.8**10 + 10 * 0.2 * 0.8**9)
    assert p_value([1] * 5, 0.5) == 1.0
    assert p_value([], 0.5) == 1.0


def test_the_upper_bound_inverts_the_test() -> None:
    """Guards against a bound with another confidence than the test's. Clopper and Pearson's bound for 0 of 100 is 1 -
    0.05^(1/100)."""
    assert upper_bound([0] * 100, 0.95) == pytest.approx(1 - 0.05**0.01, abs=1e-6)


def test_gains_make_up_for_losses() -> None:
    """Guards against a test that counts only losses. As many gains as losses are no drop; losses alone are one."""
    balanced = ([1.0] + [0.0] * 49 + [-1.0] + [0.0] * 49) * 20
    assert p_value(balanced, 0.03) < 0.05
    assert p_value(([1.0] + [0.0] * 20 + [0.5]) * 50, 0.03) > 0.5
    assert upper_bound(balanced, 0.95) < 0.03


def test_how_many_prompts_would_do() -> None:
    """Guards against advising too few prompts, and against naming a number where no number would be enough."""
    needed = prompts_needed([0] * 50, 0.01, 0.95)
    assert needed is not None and 299 <= needed <= 299 * 1.25
    assert prompts_needed([1] + [0] * 49, 0.01, 0.95) is None
