"""What a text suggests by itself, against a slow search."""

from hypothesis import given
from hypothesis import strategies as st

from multitoken.decoding.copying import copy_behind


def slow(text: list[int], places: int) -> tuple[list[int], float]:
    """The definition, place by place."""
    weights = [0.8**back for back in range(16)]
    end = len(text) - 1
    best, score = -1, 0.0
    for place in range(end):
        here = sum(
            weights[back] for back in range(16) if place >= back and text[place - back] == text[end - back]
        ) / sum(weights)
        if here >= score - 1e-9 and here > 0:
            best, score = place, here
    if best < 0:
        return [0] * places, 0.0
    tokens = list(text)
    for j in range(places):
        tokens.append(tokens[best + 1 + j])
    return tokens[len(text) :], score


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.integers(1, 15))
def test_as_the_slow_search(text: list[int], places: int) -> None:
    """Small alphabets: many places agree nearly as well, and the best one may touch the end."""
    copied, expected = copy_behind(text, places), slow(text, places)
    assert abs(copied.alike - expected[1]) < 1e-5
    assert copied.tokens == expected[0]


def test_a_token_that_differs_ends_nothing() -> None:
    """Numbered lines: the number is new in each, and what is copied is the line all the same."""
    text = [1, 50, 60, 61, 9, 2, 50, 60, 61, 9, 3]
    assert copy_behind(text, 5).tokens == [50, 60, 61, 9, 3]


def test_a_text_without_repetition_suggests_nothing() -> None:
    assert copy_behind([1, 2, 3, 4], 3) == ([0, 0, 0], 0.0)
    assert copy_behind([1], 3) == ([0, 0, 0], 0.0)
