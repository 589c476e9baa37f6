"""The model's predictions along its own responses, against a reference that goes token by token."""

import math

import pytest
import torch

from multitoken.decoding import DecodingError
from multitoken.evaluation import own_predictions as module
from multitoken.evaluation.own_predictions import own_predictions
from multitoken.models.model import Model
from tests.tiny import tiny_gpt2, tiny_llama, tiny_tokenizer

PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13], [14, 15]]


def predict_slowly(model: Model, prompt: list[int], new: int) -> tuple[list[float], list[float]]:
    """One full forward pass a token, its own softmax in float64, no cache."""
    ids, entropies, probabilities = list(prompt), [], []
    while len(entropies) < new and (not entropies or ids[-1] not in model.decoder.eos_ids):
        with torch.no_grad():
            p = model.hf(torch.tensor([ids])).logits[0, -1].double().softmax(-1)
        entropies.append(-sum(x * math.log(x) for x in p.tolist() if x > 0))
        probabilities.append(float(p.max()))
        ids.append(int(p.argmax()))
    return entropies, probabilities


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
@pytest.mark.parametrize("rows", [1, 3])
def test_predictions_are_those_of_plain_decoding(make, rows: int, monkeypatch) -> None:
    """A shift by one position, or rows returned in another order, would give plausible but wrong entropies."""
    monkeypatch.setattr(module, "ROWS", rows)
    tokenizer = tiny_tokenizer()
    model = Model(make(tokenizer), tokenizer)
    seen: list[tuple[int, int]] = []
    found = own_predictions(model, PROMPTS, 12, progress=lambda *counts: seen.append(counts))
    for prompt, got in zip(PROMPTS, found, strict=True):
        entropies, probabilities = predict_slowly(model, prompt, 12)
        # float32 against float64 through two layers
        assert got.entropies == pytest.approx(entropies, abs=1e-4)
        assert got.probabilities == pytest.approx(probabilities, abs=1e-4)
    assert seen == sorted(seen) and seen[-1] == (48, 48)


def test_a_token_that_cannot_be_does_not_poison_the_entropy() -> None:
    """A model that rules a token out with a logit of -inf: 0 * -inf is no number."""
    tokenizer = tiny_tokenizer()
    hf = tiny_llama(tokenizer)
    forward = hf.forward

    def ruling_out(*args, **kwargs):
        output = forward(*args, **kwargs)
        output.logits[..., 7] = -torch.inf
        return output

    hf.forward = ruling_out
    (found,) = own_predictions(Model(hf, tokenizer), [[5, 6]], 4)
    assert all(math.isfinite(h) and h >= 0 for h in found.entropies)


def test_prompt_without_room_is_refused() -> None:
    """Learned positions end: a prompt that leaves no room must not crash inside the model."""
    tokenizer = tiny_tokenizer()
    with pytest.raises(DecodingError, match="256 positions"):
        own_predictions(Model(tiny_gpt2(tokenizer), tokenizer), [[5] * 250], 10)
