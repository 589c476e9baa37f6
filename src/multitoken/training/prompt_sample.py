"""Some of the data's prompts as token ids, for what needs prompts alone: read and encoded as for training."""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from multitoken.errors import DataError

from .encoding import encode_record
from .sources import PROMPT_KEYS, read_records

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class PromptSample:
    """Prompts drawn at random (the same ones each time), as ids."""

    prompts: list[list[int]]
    records: int
    """How many the data holds."""
    too_long: int
    """How many were drawn and dropped, as they are longer than was allowed."""

    def __str__(self) -> str:
        dropped = f", {self.too_long:,} longer ones dropped" if self.too_long else ""
        return f"{len(self.prompts):,} of {self.records:,} prompts{dropped}"


def sample_prompts(
    source: str | Path, tokenizer: "PreTrainedTokenizerBase", number: int, *, longest: int
) -> PromptSample:
    """At most `number` prompts of at most `longest` tokens each; the data's own responses are left out.

    Raises `DataError` for data that cannot be read or has no prompts, and when all are too long.
    """
    records = list(read_records(source))
    if plain := next((r for r in records if r.text is not None), None):
        raise DataError(f"{plain.where}: plain text has no prompt; expected 'messages' or {'/'.join(PROMPT_KEYS)}")
    random.Random(0).shuffle(records)  # files are often sorted by kind or length
    prompts: list[list[int]] = []
    too_long = 0
    for record in records:
        if len(prompts) == number:
            break
        ids = encode_record(record.without_response(), tokenizer, longest).prompt_ids
        if len(ids) > longest:
            too_long += 1
        else:
            prompts.append(list(ids))
    if not prompts:
        raise DataError(
            f"all {too_long} prompts in {source} are longer than {longest} tokens, which is what the model has room for "
            "beside the response: give shorter ones, or ask for fewer new tokens"
        )
    return PromptSample(prompts, len(records), too_long)
