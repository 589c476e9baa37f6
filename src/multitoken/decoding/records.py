"""What crosses the border of `decoding/`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

Finish = Literal["eos", "length", "stop"]


class DecodingError(ValueError):
    """A prompt, option or model state that cannot be decoded. The message names the value and the mend."""


class RowsFailed(DecodingError):
    """Some rows of a call failed, and the others are done. `errors` by row; `answers` has those of the others, in the order of
    the prompts, with None for one that failed, where the call returns answers (chunks were given out as they came)."""

    def __init__(self, errors: Mapping[int, DecodingError]) -> None:
        row, error = min(errors.items())
        more = f" (so did {len(errors) - 1} more rows)" if len(errors) > 1 else ""
        super().__init__(f"row {row}: {error}{more}")
        self.errors = dict(errors)
        self.answers: Sequence[Any] = ()


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
