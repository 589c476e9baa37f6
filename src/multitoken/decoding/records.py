"""What crosses the border of `decoding/`."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Finish = Literal["eos", "length", "stop"]


@dataclass(frozen=True)
class Chunk:
    """The tokens that one forward pass emitted for one row, at least one, with the model's confidence in each.

    `len(token_ids) == len(confidences)`; a row's chunks end to end are its whole output, and chunk 0 came from the pass
    that ended the prefill, chunk i from the i-th after it. `text` is filled in by whoever has the tokenizer. The last chunk
    of a row has `finish`: an EOS token, the length asked for, or a stopping criterion. Where scores were asked for, `logits`
    and `scores` [tokens, vocabulary] are the model's own and those after the processors.
    """

    row: int
    token_ids: tuple[int, ...]
    confidences: tuple[float, ...]
    text: str = ""
    finish: Finish | None = None
    logits: Tensor | None = None
    scores: Tensor | None = None
