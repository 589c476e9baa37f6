"""From logits to tokens. Processors change the logits; then the likeliest token is taken, or one is drawn with the noise of its
position (`gumbel.py`).

Shapes: N positions, V vocabulary.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import transformers
from torch import Tensor
from transformers import LogitsProcessorList

from .failures import DecodingError
from .gumbel import noise_key, noise_keys, seed_key, signed, with_noise
from .likeliest import argmax
from .nucleus import is_plain_top_p, nucleus

if TYPE_CHECKING:
    from .row import Row

BLIND = (  # processors that do not look at the prefix: they process all positions of a row at once
    transformers.EpsilonLogitsWarper,
    transformers.EtaLogitsWarper,
    transformers.InfNanRemoveLogitsProcessor,
    transformers.MinPLogitsWarper,
    transformers.SuppressTokensLogitsProcessor,
    transformers.TemperatureLogitsWarper,
    transformers.TopKLogitsWarper,
    transformers.TopPLogitsWarper,
    transformers.TypicalLogitsWarper,
)


@dataclass(frozen=True)
class Sampling:
    """Sample at `temperature` (> 0). Each of these limits the candidates, if given: the `top_k` likeliest tokens, the nucleus
    `top_p`, and the tokens with at least `min_p` times the probability of the likeliest. `seed` fixes the text."""

    temperature: float = 1.0
    seed: int = 0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None

    def __post_init__(self) -> None:
        if not _is_number(self.temperature) or not 0 < self.temperature < math.inf:
            raise DecodingError(
                f"temperature is {self.temperature!r}; expected a number above 0 (leave it out for greedy)"
            )
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise DecodingError(f"seed is {self.seed!r}; expected a whole number")
        if self.top_k is not None and (
            isinstance(self.top_k, bool) or not isinstance(self.top_k, int) or self.top_k < 1
        ):
            raise DecodingError(f"top_k is {self.top_k!r}; expected a whole number of at least 1")
        for name, share in (("top_p", self.top_p), ("min_p", self.min_p)):
            if share is not None and (not _is_number(share) or not 0 < share <= 1):
                raise DecodingError(f"{name} is {share!r}; expected a number above 0 and at most 1")

    def processors(self) -> LogitsProcessorList:
        """Transformers' own warpers, in the order that transformers uses."""
        warpers = LogitsProcessorList()
        if self.temperature != 1.0:
            warpers.append(transformers.TemperatureLogitsWarper(float(self.temperature)))
        if self.top_k is not None:
            warpers.append(transformers.TopKLogitsWarper(self.top_k))
        if self.top_p is not None and self.top_p < 1:
            warpers.append(transformers.TopPLogitsWarper(self.top_p))
        if self.min_p is not None:
            warpers.append(transformers.MinPLogitsWarper(self.min_p))
        return warpers


_SCALE_FREE = tuple(kind for kind in BLIND if kind is not transformers.SuppressTokensLogitsProcessor)


def without_prefix(processors: LogitsProcessorList, scores: Tensor) -> Tensor:
    """Scores [N, V] after processors that do not look at the prefix."""
    shown = torch.zeros(len(scores), 1, dtype=torch.long, device=scores.device)
    for processor in processors:
        if is_plain_top_p(processor):
            scores = nucleus(scores, scores.new_full((len(scores),), processor.top_p))  # pyright: ignore[reportAttributeAccessIssue]
        else:
            scores = processor(shown, scores)  # pyright: ignore[reportArgumentType]
    return scores


def scale_free(processors: LogitsProcessorList) -> Hashable | None:
    """A key that identifies these processors, if each depends on the scores alone and not on token ids. Otherwise None."""
    if any(type(processor) not in _SCALE_FREE for processor in processors):
        return None
    return tuple((type(p).__name__, *sorted((k, str(v)) for k, v in vars(p).items())) for p in processors)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)


def choose_alike(rows: Sequence["Row"], logits: Sequence[Tensor]) -> list[tuple[list[int], Tensor]]:
    """What `choose` returns for rows whose processors are equal and look at scores only, in one go. logits: [N, V] float32 per row."""
    flat = logits[0] if len(rows) == 1 else torch.cat(list(logits))
    processors = rows[0].request.processors
    scores = without_prefix(processors, flat) if processors else flat
    if rows[0].request.seed is None:
        tokens = argmax(scores).tolist()
    else:
        seeds = [signed(seed_key(row.request.seed or 0, row.request.noise_row)) for row in rows]
        wanted = [len(mine) for mine in logits]
        each = [seed for seed, n in zip(seeds, wanted, strict=True) for _ in range(n)]
        at = [len(row.ids) + j for row, n in zip(rows, wanted, strict=True) for j in range(n)]
        keys = noise_keys(*torch.tensor([each, at], device=scores.device))
        tokens = with_noise(scores, keys).tolist()
    found: list[tuple[list[int], Tensor]] = []
    for part in scores.split([len(mine) for mine in logits]):
        found.append((tokens[: len(part)], part))
        tokens = tokens[len(part) :]
    return found


def choose(row: "Row", logits: Tensor) -> tuple[list[int], Tensor]:
    """Tokens for the positions of a row, and the scores by which they were chosen. logits: [N, V] float32.

    The first position is the one after the row's ids. For each position, processors are shown the prefix that plain decoding
    would show them, including confirmed drafts. There may be fewer tokens than positions: there are none after a rejected
    draft, and none from a position on where a processor raises and the prefix is a guess.
    """
    request = row.request
    start = len(row.ids)
    # Exact types only: a subclass may look at the prefix.
    if all(type(processor) in BLIND for processor in request.processors):
        scores = without_prefix(request.processors, logits) if request.processors else logits
        return _pick(row, scores, start), scores
    before = [*request.shown_before, *row.ids]
    prefix = torch.zeros(1, len(before) + len(logits), dtype=torch.long, device=logits.device)
    prefix[0, : len(before)] = torch.tensor(before, device=logits.device)
    tokens: list[int] = []
    kept: list[Tensor] = []
    for j in range(len(logits)):
        here = len(before) + j
        try:
            scores = request.processors(prefix[:, :here], logits[j : j + 1].clone())  # pyright: ignore[reportArgumentType]
        except Exception:
            if j > len(row.drafts):
                break  # the prefix was a guess, which the processor may not accept: stop guessing
            raise
        tokens += _pick(row, scores, start + j)
        kept.append(scores)
        if j < len(row.drafts) and tokens[j] != row.drafts[j]:
            break  # what follows a rejected draft is dropped, and plain decoding never shows a processor that prefix
        prefix[0, here] = tokens[j]
    return tokens, torch.cat(kept)


def _pick(row: "Row", scores: Tensor, start: int) -> list[int]:
    """The tokens at positions start, start + 1, ... scores: [N, V]."""
    if row.request.seed is None:
        return argmax(scores).tolist()
    keys = [signed(noise_key(row.request.seed, row.request.noise_row, start + j)) for j in range(len(scores))]
    return with_noise(scores, torch.tensor(keys, device=scores.device)).tolist()
