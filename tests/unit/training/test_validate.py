"""The speed that validation foretells, against a decoder that plays the blocks out."""

import random

import pytest
import torch

from multitoken.training.validate import expected_tokens_per_step, summarise


def played_out(right: list[list[bool]], confidence: list[list[float]], threshold: float, steps: int) -> float:
    """Exact over an endless text whose blocks are drawn from those given: emitted tokens a step."""
    rng = random.Random(0)
    emitted = drafts = confirmed = 0
    for _ in range(steps):
        # This step feeds the drafts of the last one, and masks behind them.
        emitted += confirmed + 1
        if confirmed < drafts:
            drafts = confirmed = 0  # its masks stood behind a wrong token
            continue
        block = rng.randrange(len(right))
        drafts = next((i for i, c in enumerate(confidence[block][1:]) if c < threshold), len(confidence[block]) - 1)
        confirmed = next((i for i, r in enumerate(right[block][1 : 1 + drafts]) if not r), drafts)
    return emitted / steps


@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.9])
def test_expected_tokens_per_step_is_what_playing_out_gives(threshold: float) -> None:
    """A rejected draft costs a second step: leaving that out would promise what no decoder reaches."""
    generator = torch.Generator().manual_seed(0)
    confidence = torch.rand(40, 6, generator=generator)
    right = torch.rand(40, 6, generator=generator) < confidence.sqrt()
    expected = expected_tokens_per_step(right, confidence, threshold)
    assert expected == pytest.approx(played_out(right.tolist(), confidence.tolist(), threshold, 200_000), rel=0.01)


def test_agreement_counts_only_places_that_are_reached() -> None:
    """A place behind a wrong one, or behind the text's end, says nothing about the model."""
    right = torch.tensor([[1, 1, 0, 1], [1, 0, 1, 1], [1, 1, 0, 0]]).bool()
    reached = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 0, 0]]).bool()
    found = summarise(right, reached, torch.ones(3, 4))
    assert found.accepted == pytest.approx((2 + 1 + 2) / 3)
    assert found.agreement == [1.0, pytest.approx(2 / 3, abs=1e-4), 0.0, 0.0]
