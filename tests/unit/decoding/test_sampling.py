"""Noise keyed by position: the right distribution, and one text per seed."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LogitsProcessorList, NoBadWordsLogitsProcessor, TopKLogitsWarper

from multitoken.decoding.failures import DecodingError
from multitoken.decoding.gumbel import gumbel, noise_key, noise_keys, seed_key, signed, with_noise
from multitoken.decoding.policies import NextToken
from multitoken.decoding.row import Request, Row
from multitoken.decoding.sampling import Sampling, choose

LOGITS = torch.tensor([2.0, 1.0, 0.0, -1.0, -torch.inf])


def drawn(sampling: Sampling, n: int, *, row: int = 0, start: int = 1, processors=()) -> list[int]:
    """Tokens at positions start .. start + n - 1, all with the same logits."""
    request = Request(
        [0] * start,
        NextToken(),
        n,
        processors=LogitsProcessorList([*sampling.processors(), *processors]),
        seed=sampling.seed,
        noise_row=row,
    )
    return choose(Row(0, request), LOGITS.expand(n, -1).clone())[0]


def chi_square(tokens: list[int], expected: torch.Tensor) -> float:
    counts = torch.bincount(torch.tensor(tokens), minlength=5)
    assert not counts[expected == 0].any()
    expected = expected * len(tokens)
    return float(((counts - expected) ** 2 / expected)[expected > 0].sum())


@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.0])
def test_frequencies_are_the_softmax(temperature: float) -> None:
    """Noise that is a little wrong still looks random, so frequencies are compared with the exact probabilities:
    chi-square under 21 (three degrees of freedom, one in ten thousand)."""
    tokens = drawn(Sampling(temperature, seed=1), 20_000)
    assert chi_square(tokens, (LOGITS / temperature).softmax(-1)) < 21


@pytest.mark.parametrize(
    ("options", "left"),
    [({"top_k": 2}, 2), ({"top_p": 0.9}, 3), ({"min_p": 0.2}, 2), ({"top_k": 3, "top_p": 0.6}, 1)],
)
def test_frequencies_are_those_of_the_tokens_that_are_left(options: dict, left: int) -> None:
    """top-k, top-p and min-p only remove tokens: the rest keep their proportions."""
    expected = torch.where(torch.arange(5) < left, LOGITS, -torch.inf).softmax(-1)
    assert chi_square(drawn(Sampling(seed=3, **options), 20_000), expected) < 21


def test_noise_of_neighbours_is_independent() -> None:
    """A hash with a pattern would correlate tokens, positions or rows. Correlations must be under 4.5 / sqrt(n)."""
    n = 40_000
    noise = gumbel([noise_key(0, 0, i) for i in range(n)], torch.arange(3).expand(n, -1))
    other_row = gumbel([noise_key(0, 1, i) for i in range(n)], torch.zeros(n, 1, dtype=torch.long))
    other_seed = gumbel([noise_key(1, 0, i) for i in range(n)], torch.zeros(n, 1, dtype=torch.long))
    columns = [noise[:, 0], noise[:, 1], noise[:, 2], noise[:, 0].roll(1), other_row[:, 0], other_seed[:, 0]]
    correlation = torch.corrcoef(torch.stack(columns)) - torch.eye(6)
    assert correlation.abs().max() < 4.5 / n**0.5
    assert abs(float(noise.mean()) - 0.5772) < 0.02 and abs(float(noise.std()) - 1.2825) < 0.02


def test_a_token_s_noise_does_not_depend_on_what_else_is_drawn() -> None:
    """Top-k may leave different tokens in different rows of a batch. A token's noise must not depend on the other
    tokens."""
    keys = [noise_key(5, 2, 9)]
    whole = gumbel(keys, torch.arange(1000)[None])
    assert torch.equal(gumbel(keys, torch.tensor([[7, 999, 0]])), whole[:, [7, 999, 0]])
    assert torch.isfinite(whole).all()


def test_noise_depends_on_seed_row_and_position() -> None:
    """Rows that share their noise would sample the same text."""
    assert drawn(Sampling(seed=4), 60) == drawn(Sampling(seed=4), 60)
    assert len({tuple(drawn(Sampling(seed=seed), 60, row=row)) for seed in (0, 1) for row in (0, 1)}) == 4
    assert drawn(Sampling(), 60, start=11) == drawn(Sampling(), 70)[10:]


def test_processors_that_look_at_the_prefix_and_those_that_do_not_choose_alike() -> None:
    """Whether all positions are processed at once or one by one, the chosen tokens must be the same."""
    blind = drawn(Sampling(seed=9), 50, processors=[TopKLogitsWarper(3)])
    looking = drawn(Sampling(seed=9), 50, processors=[TopKLogitsWarper(3), NoBadWordsLogitsProcessor([[4, 4]])])
    assert blind == looking


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf"), "warm", True])
def test_bad_temperatures_are_refused(temperature) -> None:
    """Zero is another name for greedy decoding. It must not become a division by zero."""
    with pytest.raises(DecodingError, match="temperature is"):
        Sampling(temperature)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 0}, "top_k is 0"),
        ({"top_k": 2.5}, "top_k is 2.5"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"top_p": 0}, "top_p is 0"),
        ({"min_p": -0.1}, "min_p is -0.1"),
        ({"seed": "x"}, "seed is 'x'"),
    ],
)
def test_bad_options_are_refused(options: dict, message: str) -> None:
    """The option is refused at once and by name, not when the first token is drawn."""
    with pytest.raises(DecodingError, match=message):
        Sampling(**options)


def test_noise_keys_of_a_batch_are_those_of_single_positions() -> None:
    """The hash is computed in Python's integers and in torch's, which wrap around. A batch must get the same noise as a
    row."""
    cases = [(0, 0, 0), (5, 2, 9), (2**63 - 1, 1, 100_000), (-3, 0, 7)]
    seeds = torch.tensor([signed(seed_key(seed, row)) for seed, row, _ in cases])
    keys = noise_keys(seeds, torch.tensor([position for *_, position in cases]))
    assert keys.tolist() == [signed(noise_key(*case)) for case in cases]
    tokens = torch.arange(9).expand(len(cases), -1)
    assert torch.equal(gumbel(keys, tokens), gumbel([noise_key(*case) for case in cases], tokens))


class OnMps(torch.Tensor):
    """A tensor that behaves as if it were on Apple's GPU, which has no float64."""

    device = torch.device("mps")

    def cpu(self, *_, **__):
        return self.as_subclass(torch.Tensor)

    def double(self, *_, **__):
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype")


@pytest.mark.parametrize("left", [5, 40])
def test_a_device_without_float64_draws_the_same_tokens(left, monkeypatch) -> None:
    """Sampling used to fail there. With noise in float32, the same seed would draw another text."""
    real = torch.Tensor.to
    monkeypatch.setattr(torch.Tensor, "to", lambda t, *a, **k: t if a == (OnMps.device,) else real(t, *a, **k))
    scores = torch.randn(64, 40, generator=torch.Generator().manual_seed(0))
    scores[:, left:] = -torch.inf
    keys, tokens = torch.arange(64) * 7919, torch.arange(40).expand(64, 40)
    assert torch.equal(with_noise(scores.as_subclass(OnMps), keys.as_subclass(OnMps)), with_noise(scores, keys))
    assert torch.equal(gumbel(keys.as_subclass(OnMps), tokens.as_subclass(OnMps)), gumbel(keys, tokens).float())


@pytest.mark.parametrize("left", [64, 63, 5, 4, 1])
def test_however_many_tokens_are_left_the_noise_is_theirs(left: int) -> None:
    """A search among the few tokens that are left must draw the same token as noise for all tokens."""
    generator = torch.Generator().manual_seed(left)
    scores = torch.randn(50, 64, generator=generator)
    gone = torch.rand(50, 64, generator=generator).argsort(-1)[:, left:]
    scores = scores.scatter(-1, gone, -torch.inf)
    keys = noise_keys(torch.arange(50), torch.arange(50))
    rows = [gumbel(key[None], torch.arange(64)[None])[0] for key in keys]
    expected = [int((row.double() + noise).argmax()) for row, noise in zip(scores, rows, strict=True)]
    assert with_noise(scores, keys).tolist() == expected


@given(
    seed=st.integers(0, 2**31),
    vocabulary=st.sampled_from([17, 64, 2048]),
    spread=st.sampled_from([0.0, 0.1, 4.0, 40.0]),
    level=st.sampled_from([0.0, -1e4, 1e6]),
)
def test_leaving_out_the_tokens_that_cannot_be_drawn_changes_none(
    seed: int, vocabulary: int, spread: float, level: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(20, vocabulary, generator=generator) * spread + level
    scores[::3, ::2] = -torch.inf
    keys = noise_keys(torch.arange(20) * seed, torch.arange(20))
    noise = gumbel(keys, torch.arange(vocabulary).expand(20, vocabulary))
    assert with_noise(scores, keys).tolist() == (scores + noise).argmax(-1).tolist()


def test_the_first_of_equals_is_drawn_and_an_infinite_score_always() -> None:
    keys = noise_keys(torch.arange(3), torch.arange(3))
    scores = torch.zeros(3, 400)
    scores[0, 7], scores[1, 9], scores[2] = torch.inf, torch.nan, 1e30
    assert with_noise(scores, keys).tolist() == [7, 9, 0]
