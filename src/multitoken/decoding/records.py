"""The results that `decoding/` hands to its callers."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Finish = Literal["eos", "length", "stop"]


@dataclass(frozen=True)
class Chunk:
    """The tokens that one forward pass emitted for one row (at least one), with the model's confidence in each.

    `len(token_ids) == len(confidences)`. A row's chunks, joined, are its whole output. Chunk 0 comes from the pass that
    ended the prefill, chunk i from the i-th pass after it. `text` is filled in by the code that has the tokenizer. The last
    chunk of a row has `finish`: an EOS token, the requested length, or a stopping criterion. If scores were requested,
    `logits` and `scores` [tokens, vocabulary] are the model's own logits and those after the processors.
    """

    row: int
    token_ids: tuple[int, ...]
    confidences: tuple[float, ...]
    text: str = ""
    finish: Finish | None = None
    logits: Tensor | None = None
    scores: Tensor | None = None
