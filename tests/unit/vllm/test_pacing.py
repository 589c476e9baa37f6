"""How many masks a vLLM server feeds, from made-up times and made-up luck. Needs no vLLM, and looks at no clock."""

import pytest

from multitoken.vllm.pacing import Measured, Pacer, StepTimes

FLAT = Measured(*[dict.fromkeys((1, 2, 64, 1024), 0.010)] * 2)  # tokens cost nothing
STEEP = Measured(*[{n: 0.010 * n for n in (1, 2, 64, 1024)}] * 2)  # tokens cost all there is


def at(times: StepTimes, requests: int, width: float) -> float:
    times.requests = requests
    return times.seconds(1, 0, width)


def test_times_lie_between_what_was_measured_and_go_on_beyond() -> None:
    plain, masked = {1: 0.010, 2: 0.020, 4: 0.060}, {1: 0.010, 2: 0.030, 4: 0.050}
    times = StepTimes(Measured(plain, masked))
    rest = at(times, 1, 1) - 0.010  # what is guessed of the time beside the forward pass
    for width, expected in ((2, 0.030), (3, 0.040), (6, 0.070)):
        assert at(times, 1, width) == pytest.approx(expected + rest)
    assert at(times, 2, 1) - at(times, 1, 1) == pytest.approx(0.010, abs=0.001)  # nobody feeds a mask


def test_steps_teach_what_was_not_or_wrongly_measured() -> None:
    """The machine was busy when the server started, and what a request costs beside the forward pass is not known: what is
    learnt must hold at widths that were not seen, or plain decoding would look cheaper or dearer than it is."""
    table = {n: 0.004 + 0.0001 * n for n in (1, 2, 64, 1024)}
    times = StepTimes(Measured(table, table))

    def truth(requests: int, tokens: float) -> float:
        return 0.4 * (0.004 + 0.0001 * tokens) + 0.003 + 0.0002 * requests

    for i in range(300):
        requests = (1, 8, 8, 16)[i % 4]
        times.observe(requests, requests * (4 + i % 7), truth(requests, requests * (4 + i % 7)))
    for requests, width in ((1, 1), (8, 1), (16, 16), (32, 2)):
        assert at(times, requests, width) == pytest.approx(truth(requests, requests * width), rel=0.1)


def test_one_hiccup_says_little() -> None:
    times = StepTimes(FLAT)
    for _ in range(50):
        times.observe(1, 1, 0.012)
    times.observe(1, 1, 60.0)
    assert at(times, 1, 1) < 0.014


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
