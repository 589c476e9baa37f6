"""Position-keyed noise: the right distribution, and one text per seed."""

import pytest
import torch

from multitoken.decoding.records import DecodingError
from multitoken.decoding.sampling import Sampling

LOGITS = torch.tensor([2.0, 1.0, 0.0, -1.0, -torch.inf])


@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.0])
def test_frequencies_are_the_softmax(temperature: float) -> None:
    """Noise that is a little wrong still looks random: compare with the exact probabilities, chi-square under 21
    (three degrees of freedom, one in ten thousand)."""
    n = 6000
    sampling = Sampling(temperature, seed=1)
    counts = torch.bincount(torch.tensor([sampling.pick(LOGITS, 0, i) for i in range(n)]), minlength=5)
    expected = (LOGITS / temperature).softmax(-1) * n
    assert counts[4] == 0
    chi_square = ((counts - expected)[:4] ** 2 / expected[:4]).sum()
    assert chi_square < 21


def test_noise_depends_on_seed_row_and_position() -> None:
    """Rows that share their noise would sample the same text."""

    def drawn(seed: int, row: int) -> list[int]:
        return [Sampling(1.0, seed).pick(LOGITS, row, position) for position in range(60)]

    assert drawn(0, 0) == drawn(0, 0)
    assert len({tuple(drawn(seed, row)) for seed in (0, 1) for row in (0, 1)}) == 4


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf"), "warm"])
def test_bad_temperatures_are_refused(temperature) -> None:
    """Zero is greedy by another name: it must not become a division by zero."""
    with pytest.raises(DecodingError, match="temperature is"):
        Sampling(temperature)
