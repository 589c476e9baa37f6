"""Presence and frequency penalties as OpenAI's API defines them. transformers does not have them.

    logit of a token  -=  presence * (it was generated before)  +  frequency * (how often it was)

The prompt does not count. Positive penalties make repetition rarer, negative ones more frequent.
"""

import math

import torch
from torch import Tensor
from transformers import LogitsProcessor

from .failures import DecodingError


class PresenceFrequencyPenalty(LogitsProcessor):
    """prompt_length: how many of the ids that it receives belong to the prompt, including padding in front."""

    def __init__(self, presence: float, frequency: float, prompt_length: int) -> None:
        for name, value in (("presence_penalty", presence), ("frequency_penalty", frequency)):
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise DecodingError(f"{name} is {value!r}; expected a number, such as 0.5")
        self._presence, self._frequency = float(presence), float(frequency)
        self._prompt_length = prompt_length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        generated = input_ids[:, self._prompt_length :]
        counts = torch.zeros_like(scores).scatter_add_(1, generated, torch.ones_like(generated, dtype=scores.dtype))
        return scores - self._frequency * counts - self._presence * (counts > 0)
