import pytest

from multitoken.decoding.failures import DecodingError
from multitoken.decoding.sampling import Sampling
from multitoken.errors import UsageError
from multitoken.evaluation.sampled import in_words, of_question, sampling_of


@pytest.mark.parametrize("temperature", [None, 0, 0.0])
def test_no_temperature_is_greedy(temperature: float | None) -> None:
    """Guards against refusing a temperature of 0, and against silently ignoring sampling options when decoding is
    greedy."""
    assert sampling_of(temperature) is None
    for option in ({"top_p": 0.9}, {"top_k": 3}, {"seed": 0}):
        with pytest.raises(UsageError, match="add --temperature"):
            sampling_of(temperature, **option)


def test_numbers_are_checked_by_decoding() -> None:
    """Guards against a second set of rules for sampling options, next to those of decoding."""
    assert sampling_of(0.8, top_p=0.95) == Sampling(0.8, seed=0, top_p=0.95)
    with pytest.raises(DecodingError, match="top_p is 2"):
        sampling_of(0.8, top_p=2)


def test_questions_have_seeds_of_their_own() -> None:
    """Guards against questions that have the same noise at each position."""
    assert of_question(Sampling(0.8, seed=5), 3) == Sampling(0.8, seed=8)
    assert of_question(None, 3) is None


def test_words() -> None:
    assert in_words(None) == "greedy"
    assert in_words(Sampling(1.0, seed=2, top_k=20)) == "temperature 1, top-k 20, seed 2"
