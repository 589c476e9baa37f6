"""How many masks a vLLM server feeds, from made-up times and made-up luck. Needs no vLLM, and looks at no clock."""

import pytest

from multitoken.vllm.pacing import Pacer, StepTimes

FLAT = {1: 0.010, 2: 0.010, 64: 0.010, 1024: 0.010}  # tokens cost nothing
STEEP = {1: 0.001, 2: 0.002, 64: 0.064, 1024: 1.024}  # tokens cost all there is


def test_times_lie_between_what_was_measured_and_go_on_beyond() -> None:
    times = StepTimes({1: 0.001, 3: 0.003, 5: 0.009})
    for requests, width, expected in ((1, 1, 0.001), (2, 1, 0.002), (1, 4, 0.006), (2, 2.5, 0.009), (7, 1, 0.015)):
        times.requests = requests
        assert times.seconds(1, width) == pytest.approx(expected)


def test_what_comes_to_the_forward_pass_is_learnt_by_number_of_requests() -> None:
    """What is learnt at one width must hold at every other, or plain decoding would look cheaper than it is."""
    times = StepTimes(FLAT)
    for requests, beside in ((1, 0.002), (32, 0.020)):
        for _ in range(400):
            times.observe(requests, 4 * requests, 0.010 + beside)
    for requests, beside in ((1, 0.002), (2, 0.002), (32, 0.020)):
        times.requests = requests
        assert times.seconds(1, 1) == pytest.approx(0.010 + beside, rel=0.02)
        assert times.seconds(1, 16) == pytest.approx(0.010 + beside, rel=0.02)


def test_one_hiccup_says_little() -> None:
    times = StepTimes(FLAT)
    times.observe(1, 1, 0.012)
    times.observe(1, 1, 60.0)
    assert times.seconds(1, 1) < 0.017


@pytest.mark.parametrize(("measured", "held", "masks"), [(FLAT, True, 7), (FLAT, False, 0), (STEEP, True, 0)])
def test_masks_are_fed_where_they_pay(measured: dict[int, float], held: bool, masks: int) -> None:
    """All of them where they cost nothing and hold, none where they never hold or where tokens are all the cost."""
    pacer, fed = Pacer(7, measured), [7, 7]
    for _ in range(100):
        pacer.settle(["a", "b"], fed, fed if held else [0, 0], fed)
        fed = [pacer.masks(2)] * 2
    assert fed == [masks] * 2


def test_a_request_that_moved_keeps_its_block() -> None:
    """Batches are sorted anew: what held is counted for the block that its request fed, or counts would be of nobody."""
    pacer = Pacer(7, FLAT)
    for _ in range(50):
        pacer.settle(["a", "b"], [0, 0], [0, 0], [7, 0])
        pacer.settle(["b", "a"], [0, 7], [0, 7], [0, 0])
    assert pacer.masks(2) == 7
