"""Is an output identical to another? Every claim of identity rests on this definition.

Identical: equal token ids, EOS included. Two float32 computations of the same logits differ in their last bits, so where
the logits of two tokens are almost equal, either may win. Such a first difference is a tie. It is judged in float64 and
counted separately. After it the two outputs continue different texts, so nothing after it is compared.

In bfloat16 and float16, passes of several tokens and of one token round differently, and much more coarsely. There a
difference is a tie if, in float32, the two logits are no further apart than the error of the type. That error is the larger
of two numbers: one step of the type at the top logit (bfloat16's steps from 8 to 16 are 1/16), and twice the largest
difference between a logit of a plain pass in that type and the same logit in float32 (twice, because both logits may be off
in opposite directions).

A sampled token is the one with the largest sum of its score and the noise of its position (`decoding/gumbel.py`). There a
tie is a tie of these sums, with the same seed. If rounding moves a token across the edge of top-k or top-p, that is not a
tie: it counts as different.
"""

import copy
import math
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any

import torch

from multitoken.decoding.gumbel import gumbel, noise_key
from multitoken.decoding.sampling import Sampling, without_prefix

HALF = (torch.bfloat16, torch.float16)
TIE_GAP = 1e-4  # in logits; where tokens are sampled, in scores with their noise


class Identity(Enum):
    IDENTICAL = "identical"
    TIE = "tie"
    DIFFERENT = "different"


Gap = Callable[[Sequence[int], int, int], float]
"""`gap(before, ours, reference)`: how far the lower of two tokens' logits is below the top logit after the output `before`,
beyond the rounding of a 16-bit type. For the two top tokens this is the gap of the two top logits. A tie of those two never
excuses a third token."""


def compare(ours: Sequence[int], reference: Sequence[int], *, gap: Gap) -> Identity:
    """Whether two outputs for the same prompt are identical, differ by a tie or differ. `gap` is called at most once.

    compare([5, 7, 2], [5, 7, 2], gap=...)   identical
    compare([5, 7, 2], [5, 8, 2], gap=...)   a tie if gap([5], 7, 8) < 1e-4, else different
    compare([5, 7], [5, 7, 2], gap=...)      different: one stopped where the other went on
    """
    for place, (our_token, their_token) in enumerate(zip(ours, reference, strict=False)):
        if our_token != their_token:
            tied = gap(list(reference[:place]), our_token, their_token) < TIE_GAP
            return Identity.TIE if tied else Identity.DIFFERENT
    return Identity.IDENTICAL if len(ours) == len(reference) else Identity.DIFFERENT


class Judge:
    """The gap of two tokens' logits, from a copy of a model in twice its precision (float64, or float32 for a 16-bit model).
    The copy is made when a gap is first asked for.

    `mask_token_id`'s logit is at -inf, as in decoding. The copy takes twice the model's memory, on its device.
    """

    def __init__(self, hf_model: Any, mask_token_id: int | None = None) -> None:
        self._model = hf_model
        self._dtype: torch.dtype = next(hf_model.parameters()).dtype
        self._mask_token_id = mask_token_id
        self._twin: Any = None
        self._known: dict[tuple[Any, ...], float] = {}

    def after(self, prompt_ids: Sequence[int], sampling: Sampling | None = None, row: int = 0) -> Gap:
        """The `gap` of `compare` for outputs to this prompt, greedy or sampled; `row` keys the noise, as in decoding."""
        return lambda before, ours, reference: self.gap([*prompt_ids, *before], ours, reference, sampling, row)

    def gap(
        self, token_ids: Sequence[int], ours: int, reference: int, sampling: Sampling | None = None, row: int = 0
    ) -> float:
        """How far the lower of two tokens' logits (sampled: scores with their noise) is below the top after `token_ids`,
        beyond the rounding of a 16-bit type."""
        # Policies of one model tend to differ from the reference at the same position: compute that once.
        key = (tuple(token_ids), min(ours, reference), max(ours, reference), sampling, row)
        if key not in self._known:
            scores = self._logits(self._finer(), token_ids)
            rounding = self._rounding(scores, token_ids)
            if sampling is not None:
                scores = _with_noise(scores, sampling, row, len(token_ids))
                rounding /= sampling.temperature
            gap = float(scores.max() - torch.minimum(scores[ours], scores[reference]))
            self._known[key] = max(0.0, gap - rounding)
        return self._known[key]

    def _finer(self) -> Any:
        if self._twin is None:
            finer = torch.float32 if self._dtype in HALF else torch.float64
            self._twin = copy.deepcopy(self._model).to(finer).eval()
        return self._twin

    @torch.inference_mode()
    def _logits(self, model: Any, token_ids: Sequence[int]) -> torch.Tensor:  # [vocabulary]
        ids = torch.tensor([list(token_ids)], device=model.device)
        logits = model(input_ids=ids, use_cache=False).logits[0, -1]
        if self._mask_token_id is not None and self._mask_token_id < len(logits):  # a gate's own may be outside
            logits[self._mask_token_id] = -torch.inf
        return logits.double()

    def _rounding(self, finer: torch.Tensor, token_ids: Sequence[int]) -> float:
        """The error of a 16-bit type in these logits. Through many layers it becomes more than the type's step at the end."""
        if self._dtype not in HALF:
            return 0.0
        step = torch.finfo(self._dtype).eps * 2.0 ** math.floor(math.log2(max(abs(float(finer.max())), 2.0**-14)))
        errors = (self._logits(self._model, token_ids) - finer).abs()
        return max(step, 2 * float(errors[finer.isfinite()].max()))


def _with_noise(logits: torch.Tensor, sampling: Sampling, row: int, position: int) -> torch.Tensor:  # [vocabulary]
    """The scores of which the sampled token at a position is the largest."""
    scores = without_prefix(sampling.processors(), logits[None])
    tokens = torch.arange(scores.shape[-1], device=logits.device)[None]
    return (scores + gumbel([noise_key(sampling.seed, row, position)], tokens))[0]
