"""The format of numbers in the tables that benchmarks print."""

from collections.abc import Sequence


def with_interval(value: float, interval: Sequence[float] | None, digits: int = 2) -> str:
    """A number and its interval; nan if there were too few measurements for an interval.

    >>> with_interval(2.65, (2.45, 2.84))
    '2.65 (2.45 to 2.84)'
    """
    low, high = interval or (float("nan"), float("nan"))
    return f"{value:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"
