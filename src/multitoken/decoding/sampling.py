"""From logits to tokens: greedy, or sampled with noise that belongs to a position.

The Gumbel noise of a token is a function of (seed, row, absolute position) alone, and the token is
argmax(log p / temperature + noise): a draft made and confirmed with the same noise gives the text that next-token
decoding gives with that seed, whatever the batch.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .records import DecodingError


@dataclass(frozen=True)
class Sampling:
    """Sample at `temperature` (> 0); `seed` fixes the text."""

    temperature: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not (isinstance(self.temperature, int | float) and math.isfinite(self.temperature) and self.temperature > 0):
            raise DecodingError(
                f"temperature is {self.temperature!r}; expected a number above 0 (leave it out for greedy)"
            )

    def pick(self, scores: Tensor, row: int, position: int) -> int:
        """The token for one position. scores: [V] float32 logits after processors."""
        key = self.seed * 0x9E37_79B9_7F4A_7C15 + row * 0xBF58_476D_1CE4_E5B9 + position * 0x94D0_49BB_1331_11EB
        generator = torch.Generator().manual_seed(key & 0x7FFF_FFFF_FFFF_FFFF)
        uniform = torch.rand(scores.shape[-1], generator=generator, dtype=torch.float64)
        exponential = -uniform.clamp_min(1e-300).log()
        gumbel = -exponential.clamp_min(1e-300).log()
        return int((scores.double().cpu() / self.temperature + gumbel).argmax())
