"""The speed that validation predicts, compared with a simulation that decodes block by block."""

import pytest
import torch

from multitoken.training.validate import Walk, expected_tokens_per_step, summarise


def played_out(walks: list[Walk], threshold: float) -> float:
    """Simulate Exact over each text, pass by pass. Returns the emitted tokens per step."""
    emitted = steps = 0
    for walk in walks:
        right, confidence = walk.right.tolist(), walk.confidence.tolist()
        place, drafts, confirmed = 0, 0, 0
        while place < len(right) or drafts:
            # This step feeds the drafts of the last one, and masks after them.
            steps += 1
            if confirmed < drafts:
                emitted += 1
                place += 1
                drafts = confirmed = 0  # its masks came after a wrong token
                continue
            if place >= len(right):
                break
            block = place
            drafts = next((i for i, c in enumerate(confidence[block][1:]) if c < threshold), len(confidence[block]) - 1)
            confirmed = next((i for i, r in enumerate(right[block][1 : 1 + drafts]) if not r), drafts)
            emitted += 1 + confirmed
            place += 1 + confirmed
            if confirmed == drafts:
                drafts = confirmed = 0
    return emitted / steps


def made_up(seed: int) -> list[Walk]:
    generator = torch.Generator().manual_seed(seed)
    walks = []
    for places in (30, 7, 1):
        confidence = torch.rand(places, 6, generator=generator)
        right = torch.rand(places, 6, generator=generator) < confidence.sqrt()
        walks.append(Walk(right, torch.ones_like(right), confidence))
    return walks


@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.9])
def test_expected_tokens_per_step_is_what_playing_out_gives(threshold: float) -> None:
    """A rejected draft costs a second step. A prediction without it would promise a speed that no decoder reaches."""
    for seed in range(5):
        walks = made_up(seed)
        assert expected_tokens_per_step(walks, threshold) == pytest.approx(played_out(walks, threshold))


def test_places_that_decoding_jumps_over_do_not_count() -> None:
    """Three positions with right drafts, then one without any: a mean over all positions would count the easy part
    three times."""
    right = torch.tensor([[1, 1, 1], [1, 1, 1], [1, 1, 1], [1, 0, 0]]).bool()
    walk = Walk(right, torch.ones_like(right), right.float())
    assert expected_tokens_per_step([walk], 0.5) == pytest.approx((3 + 1) / 2)


def test_the_best_threshold_is_the_fastest_one() -> None:
    """Drafts with a confidence of 0.65 are always wrong, so every threshold below it wastes a step. Drafts with 0.75
    are always right."""
    right = torch.tensor([[1, 1, 0]] * 12).bool()
    confidence = torch.tensor([[1.0, 0.75, 0.65]] * 12)
    found = summarise([Walk(right, torch.ones_like(right), confidence)], kept=0.97)
    assert found.threshold == 0.7
    assert found.tokens_per_step == {0.3: 1.5, 0.5: 1.5, 0.6: 1.5, 0.7: 2.0, 0.8: 1.0, 0.9: 1.0}
    assert found.metrics()["tokens_per_step"] == 2.0
    assert found.drift == pytest.approx(0.03) and "97.0% of next tokens are still the original's" in str(found)


def test_agreement_counts_only_places_that_are_reached() -> None:
    """A position after a wrong one, or after the end of the text, says nothing about the model."""
    right = torch.tensor([[1, 1, 0, 1], [1, 0, 1, 1], [1, 1, 0, 0]]).bool()
    reached = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 0, 0]]).bool()
    found = summarise([Walk(right, reached, torch.ones(3, 4))])
    assert found.accepted == pytest.approx((2 + 1 + 2) / 3)
    assert found.agreement == [1.0, pytest.approx(2 / 3, abs=1e-4), 0.0, 0.0]
