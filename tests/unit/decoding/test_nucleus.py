"""Top-p without a sort must keep the same tokens as transformers' warper."""

import pytest
import torch
from transformers import TopPLogitsWarper

from multitoken.decoding import nucleus as module
from multitoken.decoding.gumbel import noise_keys, seed_key, signed, with_noise, with_noise_in_nucleus
from multitoken.decoding.nucleus import nucleus


def scores_of(spread: float, rows: int = 64, vocabulary: int = 700) -> torch.Tensor:
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(3)) * spread


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 0.95, 0.999, 1.0])
@pytest.mark.parametrize("spread", [0.0, 0.3, 2.0, 6.0, 20.0])
def test_it_leaves_what_transformers_leaves(spread: float, top_p: float) -> None:
    """Covers flat rows (a nucleus larger than the part that is searched), ties and peaks. One token too many or too few
    gives another text."""
    scores = scores_of(spread)
    expected = TopPLogitsWarper(top_p)(None, scores)  # pyright: ignore[reportArgumentType]
    assert torch.equal(nucleus(scores, torch.full((64,), top_p)), expected)


def test_each_row_has_a_share_of_its_own() -> None:
    scores, shares = scores_of(4.0, rows=3), torch.tensor([0.2, 0.7, 0.97])
    together = nucleus(scores, shares)
    for i, share in enumerate(shares.tolist()):
        assert torch.equal(together[i : i + 1], TopPLogitsWarper(share)(None, scores[i : i + 1]))  # pyright: ignore[reportArgumentType]


def test_a_border_that_rounding_decides_is_left_to_the_sort(monkeypatch: pytest.MonkeyPatch) -> None:
    """With ten equal tokens and top-p 0.5, it depends on the rounding of a sum whether the fifth or the sixth is the
    last."""
    seen: list[int] = []
    original = module._sorted
    monkeypatch.setattr(module, "_sorted", lambda s, p: seen.append(len(s)) or original(s, p))
    scores = torch.full((2, 300), -50.0)
    scores[0, :10] = 0.0  # a tie at the border
    scores[1, :3] = torch.tensor([0.8, 0.15, 0.05]).log()  # far from 0.5
    kept = nucleus(scores, torch.tensor([0.5, 0.5]))
    assert seen == [1]
    assert torch.equal(kept, TopPLogitsWarper(0.5)(None, scores))  # pyright: ignore[reportArgumentType]


def test_a_row_that_is_not_a_number_leaves_its_neighbours_alone() -> None:
    scores = scores_of(4.0, rows=4)
    broken = scores.clone()
    broken[2] = torch.nan
    whole, partly = (nucleus(s, torch.full((4,), 0.9)) for s in (scores, broken))
    assert torch.equal(whole[[0, 1, 3]], partly[[0, 1, 3]])


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("spread", [0.3, 6.0, 20.0])
@pytest.mark.parametrize("rows", [1, 5])
def test_a_token_drawn_among_the_candidates_alone_is_the_same(rows: int, spread: float, top_p: float) -> None:
    """One seed must give one text, whichever way its noise is added to the scores."""
    scores, shares = scores_of(spread, rows), torch.full((rows,), top_p)
    for seed in range(40):
        keys = noise_keys(torch.full((rows,), signed(seed_key(seed, 0))), torch.arange(rows))
        assert torch.equal(with_noise_in_nucleus(scores, shares, keys), with_noise(nucleus(scores, shares), keys))
