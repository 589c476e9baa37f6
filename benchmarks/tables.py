"""How figures stand in the tables that benchmarks print."""

from collections.abc import Sequence


def with_interval(value: float, interval: Sequence[float] | None, digits: int = 2) -> str:
    """A figure and its interval; nan where there were too few measurements for one.

    >>> with_interval(2.65, (2.45, 2.84))
    '2.65 (2.45 to 2.84)'
    """
    low, high = interval or (float("nan"), float("nan"))
    return f"{value:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"
