"""Put short samples next to each other in one row, so that little of a batch is padding.

Which samples share a row is decided once. No sample sees another, so it makes no difference to what is learned.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence


def pack(lengths: Sequence[int], room: int) -> list[list[int]]:
    """The numbers of the samples in each row, with at most `room` tokens per row. Every length fits in `room`.

    Best fit, decreasing: from the longest to the shortest, each sample goes where it leaves the least room. For example,
    lengths 6, 3, 4, 2, 5 in rows of 10 make the rows [6, 4], [5, 3, 2].
    """
    rows: list[list[int]] = []
    free: list[tuple[int, int]] = []  # (room left, number of the row), in order
    for sample in sorted(range(len(lengths)), key=lambda sample: -lengths[sample]):
        place = bisect_left(free, (lengths[sample], 0))
        if place == len(free):
            left, row = room, len(rows)
            rows.append([])
        else:
            left, row = free.pop(place)
        rows[row].append(sample)
        insort(free, (left - lengths[sample], row))
    return rows
