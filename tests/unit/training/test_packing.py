"""Samples share rows: each sample appears once, no row is too full, and there are few rows."""

import random

from multitoken.training.packing import pack


def test_worked_example() -> None:
    assert pack([6, 3, 4, 2, 5], 10) == [[0, 2], [4, 1, 3]]


def test_every_sample_once_and_no_row_too_full() -> None:
    """A lost sample is data that is not trained on. A row that is too full needs memory that was not planned for."""
    lengths = [random.Random(i).randint(2, 100) for i in range(500)]
    rows = pack(lengths, 100)
    assert sorted(sample for row in rows for sample in row) == list(range(500))
    assert all(sum(lengths[sample] for sample in row) <= 100 for row in rows)
    assert len(rows) <= 1.05 * sum(lengths) / 100, "rows half empty are what packing is there to mend"


def test_nothing_to_pack() -> None:
    """Samples as long as a row are alone in theirs. Samples of equal length keep their order, so that runs are
    repeatable."""
    assert pack([7, 7, 7], 7) == [[0], [1], [2]]
    assert pack([], 7) == []
