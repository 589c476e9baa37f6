"""Record -> token ids: prompt and response tokenised apart and joined; with a chat template it renders both.

Apart, because a response that is decoded starts behind exactly the prompt's ids: a merge across the seam in training
would be one that inference never sees. The seam is the data's own: nothing is put between a plain prompt and response.
"""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from multitoken.errors import DataError, UsageError
from multitoken.models.prompts import (
    encode_prompt,
    render_chat,
    tokenize,
    tokenize_continuation,
    tokenize_text,
    user_message,
)

from .sources import Record

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Sample:
    """A prompt with its response. `ended`: the response really ended, and its last id is an EOS."""

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    ended: bool


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt whose response is still to be written."""

    prompt_ids: tuple[int, ...]


def encode_record(
    record: Record,
    tokenizer: "PreTrainedTokenizerBase",
    max_length: int,
    *,
    mask_id: int | None = None,
    eos_ids: Collection[int] = (),
) -> Sample | Prompt:
    """The ids of a record, its response cut so that both together are at most `max_length` long.

    `eos_ids` are what ends a response besides the tokenizer's own EOS (chat models often have two).
    Raises `DataError` for text that holds the mask token or that the chat template cannot render as prompt + response.
    """
    try:
        prompt_ids, response_ids = _prompt_and_response(record, tokenizer)
    except UsageError as error:
        raise DataError(f"{record.where}: {error}") from error
    if mask_id is not None and (mask_id in prompt_ids or mask_id in (response_ids or ())):
        token = tokenizer.convert_ids_to_tokens(mask_id)
        raise DataError(f"{record.where}: the text holds the mask token {token!r} (id {mask_id}): take it out")
    if response_ids is None:
        return Prompt(tuple(prompt_ids))
    return make_sample(prompt_ids, *_end(response_ids, tokenizer, eos_ids), max_length)


def make_sample(prompt_ids: Sequence[int], response_ids: Sequence[int], ended: bool, max_length: int) -> Sample:
    """A sample of at most `max_length` ids; a response that is cut has not ended."""
    room = max(0, max_length - len(prompt_ids))
    return Sample(tuple(prompt_ids), tuple(response_ids[:room]), ended and len(response_ids) <= room)


def fingerprint(ids: Sequence[int], salt: str = "") -> str:
    """A name for a sequence of ids, the same on every machine and in every order of the data."""
    return hashlib.sha256(f"{salt}|{','.join(map(str, ids))}".encode()).hexdigest()


def _prompt_and_response(record: Record, tokenizer: "PreTrainedTokenizerBase") -> tuple[list[int], list[int] | None]:
    if record.text is not None:
        return tokenize_text(record.text, tokenizer)
    if record.messages is not None:
        return _chat(record, list(record.messages), tokenizer)
    assert record.prompt is not None
    if tokenizer.chat_template is None:
        response = None if record.response is None else tokenize_continuation(record.response, tokenizer)
        return encode_prompt(record.prompt, tokenizer), response
    messages = [user_message(record.prompt)]
    if record.response is not None:
        messages.append({"role": "assistant", "content": record.response})
    return _chat(record, messages, tokenizer)


def _chat(
    record: Record, messages: list[dict], tokenizer: "PreTrainedTokenizerBase"
) -> tuple[list[int], list[int] | None]:
    """The last message is the response if it is the assistant's: what the template renders beyond the prompt."""
    if messages[-1]["role"] != "assistant":
        return encode_prompt(messages, tokenizer), None
    if len(messages) == 1:
        raise DataError(f"{record.where}: the only message is the assistant's; expected a prompt before it")
    prompt = render_chat(messages[:-1], tokenizer, for_reply=True)
    whole = render_chat(messages, tokenizer, for_reply=False)
    if not whole.startswith(prompt):
        raise DataError(
            f"{record.where}: the chat template renders the prompt differently once it is answered, so the response "
            f"cannot be told from it (the prompt alone ends in {prompt[-40:]!r}): "
            "leave the responses out and let the model write them (rewrite_responses)"
        )
    return tokenize(prompt, tokenizer), tokenize_continuation(whole[len(prompt) :], tokenizer)


def _end(
    response_ids: list[int], tokenizer: "PreTrainedTokenizerBase", eos_ids: Collection[int]
) -> tuple[list[int], bool]:
    """The response up to and with its first EOS: the template's (what follows it, a line break, is not ours) or one
    that is appended. A vocabulary without any EOS leaves the response open."""
    own = tokenizer.eos_token_id
    ends = set(eos_ids) | ({own} if isinstance(own, int) else set())
    for place, token in enumerate(response_ids):
        if token in ends:
            return response_ids[: place + 1], True
    if not ends:
        return response_ids, False
    return [*response_ids, own if isinstance(own, int) else min(ends)], True
