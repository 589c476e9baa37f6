"""Presence and frequency penalties against a slow reference."""

import pytest
import torch

from multitoken.decoding.failures import DecodingError
from multitoken.decoding.penalties import PresenceFrequencyPenalty
from tests.parity.generating import EXACT, HOLDING, MASK, NEW, PROMPTS, model_of, new_tokens, ours


def test_five_tokens_by_hand() -> None:
    """The prompt's tokens do not count. The presence penalty counts a token once, and the frequency penalty every
    time."""
    penalty = PresenceFrequencyPenalty(0.5, 0.25, prompt_length=2)
    scores = penalty(torch.tensor([[4, 4, 1, 2, 1], [0, 0, 3, 3, 3]]), torch.zeros(2, 5))
    assert scores.tolist() == [[0.0, -1.0, -0.75, 0.0, 0.0], [0.0, 0.0, 0.0, -1.25, 0.0]]
    untouched = torch.ones(1, 5)
    assert torch.equal(penalty(torch.tensor([[4, 4]]), untouched), torch.ones(1, 5))


def slow(model, prompt: list[int], presence: float, frequency: float) -> list[int]:
    """One plain forward pass per token, with the penalties counted by hand."""
    written: list[int] = []
    while len(written) < NEW and written[-1:] != [5]:
        with torch.no_grad():
            logits = model(torch.tensor([prompt + written])).logits[0, -1].float()
        logits[MASK] = -torch.inf
        for token in set(written):
            logits[token] -= presence + frequency * written.count(token)
        written.append(int(logits.argmax()))
    return written


@pytest.mark.parametrize("family", ["llama", HOLDING])
@pytest.mark.parametrize(("presence", "frequency"), [(2.0, 0.0), (0.0, 1.5), (-1.0, 0.7), (0, -2)])
def test_generate_penalises_like_the_slow_reference(family: str, presence: float, frequency: float) -> None:
    """Guards against drafts that are not counted, and against a prompt or padding that is: each would change the
    text."""
    model = model_of(family)
    wanted = [slow(model, prompt, presence, frequency) for prompt in PROMPTS]
    options = {"presence_penalty": presence, "frequency_penalty": frequency}
    assert new_tokens(ours(model, PROMPTS, **options), PROMPTS) == wanted
    assert new_tokens(ours(model, PROMPTS[:1], mtp={**EXACT, "threshold": 0.3}, **options), PROMPTS[:1]) == wanted[:1]
    assert any(row != slow(model, prompt, 0, 0) for row, prompt in zip(wanted, PROMPTS, strict=True))


def test_penalties_of_a_generation_config_count() -> None:
    """transformers keeps settings that it does not know. If they were not read from there, they would be silently
    ignored."""
    model = model_of(HOLDING)
    model.generation_config.presence_penalty = 2.0
    found = new_tokens(ours(model, PROMPTS[:1]), PROMPTS[:1])
    assert found == [slow(model, PROMPTS[0], 2.0, 0)] != [slow(model, PROMPTS[0], 0, 0)]


@pytest.mark.parametrize("value", ["x", True, float("inf"), [1]])
def test_what_is_no_number_is_refused(value) -> None:
    """The option is refused at once and by name, not at the first token."""
    with pytest.raises(DecodingError, match="frequency_penalty is"):
        PresenceFrequencyPenalty(0.0, value, 1)
