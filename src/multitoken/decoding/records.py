"""What crosses the border of `decoding/`."""

from dataclasses import dataclass


class DecodingError(ValueError):
    """A prompt, option or model state that cannot be decoded. The message names the value and the mend."""


@dataclass(frozen=True)
class Chunk:
    """The tokens that one forward pass emitted for one row, at least one, with the model's confidence in each.

    `len(token_ids) == len(confidences)`; a row's chunks end to end are its whole output, and chunk number i came from
    the row's forward pass number i (chunk 0 from the prefill). `text` is filled in by whoever has the tokenizer.
    """

    row: int
    token_ids: tuple[int, ...]
    confidences: tuple[float, ...]
    text: str = ""
