"""What measured losses promise about all prompts like these. The tests hold for every number of prompts, not only in the
limit.

A loss is what one answer costs compared with the original's: 1 or 0 (it differs or not), or a difference of grades from -1
to 1. A p-value here is an upper bound: if the mean loss of all prompts were above what is allowed, losses this small would
have at most this chance.
"""

import math
from collections.abc import Sequence

MOST_PROMPTS = 1_000_000


def p_value(losses: Sequence[float], allowed: float) -> float:
    """The p-value of "the mean loss is above `allowed`": by the exact binomial test for losses of 0 and 1, by betting for
    others."""
    if not losses:
        return 1.0
    if all(loss in (0, 1) for loss in losses):
        return _binomial(round(sum(losses)), len(losses), allowed)
    return _betting(losses, allowed)


def upper_bound(losses: Sequence[float], confidence: float) -> float:
    """With this confidence, the mean loss of all prompts is at most the returned number."""
    low, high = -1.0 if any(loss < 0 for loss in losses) else 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if p_value(losses, middle) <= 1 - confidence else (middle, high)
    return high


def prompts_needed(losses: Sequence[float], allowed: float, confidence: float) -> int | None:
    """How many prompts, with losses as frequent as these, would promise a mean loss of at most `allowed`. None: no number
    of prompts would, or more than a million are needed."""
    n = len(losses)
    if not n or sum(losses) / n >= allowed:
        return None

    def promised(number: int) -> bool:
        return p_value([losses[i * n // number] for i in range(number)], allowed) <= 1 - confidence

    number = 16
    while number <= MOST_PROMPTS and not promised(number):
        number = math.ceil(number * 1.25)
    return number if number <= MOST_PROMPTS else None


def fewest_prompts(allowed: float, confidence: float) -> int:
    """How many prompts promise a mean loss of at most `allowed` if none of them loses anything. Fewer promise nothing."""
    return math.ceil(math.log(1 - confidence) / math.log1p(-allowed) - 1e-9)


def _binomial(failures: int, n: int, allowed: float) -> float:
    """P(at most `failures` of n), each with chance `allowed`."""
    if not 0 < allowed < 1:
        return 1.0 if allowed <= 0 or failures == n else 0.0
    inside, outside = math.log(allowed), math.log1p(-allowed)
    logs = [
        math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) + i * inside + (n - i) * outside
        for i in range(failures + 1)
    ]
    top = max(logs)
    return min(1.0, math.exp(top) * sum(math.exp(value - top) for value in logs))


def _betting(losses: Sequence[float], allowed: float) -> float:
    """A gambler bets on each loss being below `allowed`, using the losses seen so far. If the mean were above it, the
    gambler's capital would exceed 1/p with a chance of at most p (Waudby-Smith and Ramdas, 2024, hedged capital with the
    plug-in bets of their section 4)."""
    m = (1 + allowed) / 2  # losses from -1 to 1 as values from 0 to 1
    if m >= 1:
        return 0.0
    capital, most = 0.0, 0.0  # logarithms
    total, squares = 0.5, 0.25
    for t, loss in enumerate(losses, start=1):
        mean, variance = total / t, squares / t
        bet = min(math.sqrt(2 * math.log(20) / (variance * len(losses))), 0.75 / (1 - m))
        value = (1 + loss) / 2
        capital += math.log1p(bet * (m - value))
        most = max(most, capital)
        total += value
        squares += (value - mean) ** 2
    return min(1.0, math.exp(-most))
