import pytest
import torch

from multitoken.decoding.attention import AttentionRule
from multitoken.decoding.step_times import StepTimes, measure_on
from tests.parity.families import MASK, SUPPORTED


def bilinear(rows: int, length: int, widths: list[int]) -> list[float]:
    return [1.0 + 2 * rows + 3 * width + length / 1000 for width in widths]


def test_what_lies_between_is_a_straight_line() -> None:
    """A step's time that is linear in rows and width is given back everywhere, and a length takes its nearest."""
    times = StepTimes(bilinear, 31)  # pyright: ignore[reportArgumentType]
    for rows, width in ((1, 1), (2, 1.5), (3, 9), (4, 31), (7, 2), (16, 20), (33, 31)):
        assert times.seconds(rows, 70, width) == pytest.approx(1.064 + 2 * rows + 3 * width)
    assert times.seconds(1, 2000, 1) == pytest.approx(6 + 1.024)
    assert times.seconds(1, 70, 1000) == times.seconds(1, 70, 31)


def test_each_size_is_measured_once_and_never_beyond_its_memory() -> None:
    asked: list[tuple[int, int]] = []

    def measure(rows: int, length: int, widths: list[int]) -> list[float]:
        asked.append((rows, length))
        return [1.0] * len(widths)

    times = StepTimes(measure, 15)  # pyright: ignore[reportArgumentType]
    for _ in range(3):
        times.seconds(1, 64, 1)
        times.seconds(40, 5000, 3)
        times.seconds(50, 300, 3)
        times.seconds(7, 300, 3)  # between 1 and 64
    assert sorted(asked) == [(1, 64), (1, 256), (64, 256)]


def test_steps_that_take_longer_move_the_table() -> None:
    """What is observed is what is soon foretold. A machine that has slowed down is slow at all sizes: were the others left
    alone, masks would look cheap as soon as none are fed."""
    times = StepTimes(bilinear, 31)  # pyright: ignore[reportArgumentType]
    sizes = (2, 64, 1), (16, 64, 31), (2, 64, 6)
    before = [times.seconds(*size) for size in sizes]
    for _ in range(60):
        times.observe(2, 64, 6, 2 * before[2])
    plain, other, observed = (times.seconds(*size) / old for size, old in zip(sizes, before, strict=True))
    assert observed == pytest.approx(2.0, rel=0.02)
    assert 1.5 < plain <= 2.05 and 1.5 < other <= 2.05


def test_a_disturbed_measurement_is_soon_mended() -> None:
    """Plain steps that were timed at four times what they take would have masks fed that do not pay."""
    times = StepTimes(lambda rows, length, widths: [4.0] * len(widths), 31)
    for _ in range(20):
        times.observe(1, 64, 1, 1.0)
    assert times.seconds(1, 64, 1) < 1.3


def test_a_model_is_timed_within_its_positions() -> None:
    """A context as long as the model's last position leaves no room for masks: measured a little before it."""
    model = SUPPORTED["qwen3"]().eval()
    limit = model.config.max_position_embeddings
    seconds = measure_on(model, MASK, AttentionRule(model))(2, limit, [1, 2, 8])
    assert len(seconds) == 3 and all(0 < s < 60 for s in seconds)
    assert torch.is_grad_enabled()
