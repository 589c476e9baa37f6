"""Record -> token ids: prompt and response tokenised apart and joined; with a chat template it renders both.

Apart, because a response that is decoded starts behind exactly the prompt's ids: a merge across the seam in training
would be one that inference never sees. The seam is the data's own: nothing is put between a plain prompt and response.
A conversation is cut at each of the assistant's turns alike.
"""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from multitoken.errors import DataError, UsageError
from multitoken.models.prompts import (
    Message,
    Tool,
    encode_prompt,
    tokenize,
    tokenize_continuation,
    tokenize_text,
    user_message,
)

from .sources import Record
from .turns import Span, render_turns

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Sample:
    """Token ids and the spans [start, end) in them that the model is to write: responses, or the assistant's turns.

    A turn's last id is the token that ends it, an EOS, wherever the template has one. `ended`: so it is with the last.
    `last_turn_only`: the chat template did not let earlier turns be told apart. `sampled`: the teacher drew it at random.
    """

    ids: tuple[int, ...]
    turns: tuple[Span, ...]
    ended: bool
    last_turn_only: bool = False
    sampled: bool = False

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        """What stands before the first turn."""
        return self.ids[: self.turns[0][0]] if self.turns else self.ids

    @property
    def response_ids(self) -> tuple[int, ...]:
        """The first turn and all behind it."""
        return self.ids[len(self.prompt_ids) :]

    def predictable(self, train_on: str) -> tuple[Span, ...]:
        """Spans of tokens that a block may predict: the first of all has nothing before it to predict it from."""
        turns = self.turns if train_on == "response" else ((0, len(self.ids)),)
        return tuple((max(1, start), end) for start, end in turns)

    def cut(self, length: int) -> "Sample":
        """At most `length` ids of it. What is cut has not ended."""
        if len(self.ids) <= length:
            return self
        turns = tuple((start, min(end, length)) for start, end in self.turns if start < length)
        return Sample(self.ids[:length], turns, False, self.last_turn_only, self.sampled)


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
    ends = {*eos_ids, *([own] if isinstance(own := tokenizer.eos_token_id, int) else [])}
    try:
        item = _encode(record, tokenizer, ends)
    except UsageError as error:
        raise DataError(f"{record.where}: {error}") from error
    if mask_id is not None and mask_id in (item.ids if isinstance(item, Sample) else item.prompt_ids):
        token = tokenizer.convert_ids_to_tokens(mask_id)
        raise DataError(f"{record.where}: the text holds the mask token {token!r} (id {mask_id}): take it out")
    return item.cut(max_length) if isinstance(item, Sample) else item


def make_sample(
    prompt_ids: Sequence[int], response_ids: Sequence[int], ended: bool, max_length: int, *, sampled: bool = False
) -> Sample:
    """One prompt, one response, at most `max_length` ids."""
    ids = (*prompt_ids, *response_ids)
    return Sample(ids, ((len(prompt_ids), len(ids)),) if response_ids else (), ended, sampled=sampled).cut(max_length)


def fingerprint(ids: Sequence[int], salt: str = "") -> str:
    """A name for a sequence of ids, the same on every machine and in every order of the data."""
    return hashlib.sha256(f"{salt}|{','.join(map(str, ids))}".encode()).hexdigest()


def _encode(record: Record, tokenizer: "PreTrainedTokenizerBase", ends: Collection[int]) -> Sample | Prompt:
    if record.text is not None:
        leading, body = tokenize_text(record.text, tokenizer)
        return _sample([*leading, *body], [(len(leading), len(leading) + len(body))], tokenizer, ends)
    if record.messages is not None:
        return _encode_chat(record.messages, record.tools, tokenizer, ends)
    assert record.prompt is not None
    if tokenizer.chat_template is None:
        prompt = encode_prompt(record.prompt, tokenizer)
        if record.response is None:
            return Prompt(tuple(prompt))
        ids = [*prompt, *tokenize_continuation(record.response, tokenizer)]
        return _sample(ids, [(len(prompt), len(ids))], tokenizer, ends)
    answer = () if record.response is None else ({"role": "assistant", "content": record.response},)
    return _encode_chat((user_message(record.prompt), *answer), None, tokenizer, ends)


def _encode_chat(
    messages: tuple[Message, ...],
    tools: tuple[Tool, ...] | None,
    tokenizer: "PreTrainedTokenizerBase",
    ends: Collection[int],
) -> Sample | Prompt:
    """A conversation that the assistant ends has all its turns trained on; any other is a prompt for the next one."""
    if messages[-1]["role"] != "assistant":
        return Prompt(tuple(encode_prompt(list(messages), tokenizer, tools=tools)))
    if len(messages) == 1:
        raise UsageError("the only message is the assistant's; expected a prompt before it")
    chat = render_turns(messages, tokenizer, tools)
    closings = [str(tokenizer.convert_ids_to_tokens(end)) for end in ends]
    ids: list[int] = []
    turns: list[Span] = []
    read = 0
    for start, end in chat.turns:
        end = _close(chat.text, start, end, closings)
        context = chat.text[read:start]
        ids += tokenize_continuation(context, tokenizer) if ids else tokenize(context, tokenizer)
        turn = tokenize_continuation(chat.text[start:end], tokenizer)
        turns.append((len(ids), len(ids) + len(turn)))
        ids += turn
        read = end
    return _sample(ids, turns, tokenizer, ends, last_turn_only=chat.last_turn_only)


def _close(text: str, start: int, end: int, closings: Sequence[str]) -> int:
    """The place behind the token that ends a turn. The turn may be given with what the template writes behind that
    token (a line break, which is not ours), or without the token."""
    found = [place + len(token) for token in closings if (place := text.find(token, start, end + len(token))) >= 0]
    return min(found, default=end)


def _sample(
    ids: list[int],
    turns: list[Span],
    tokenizer: "PreTrainedTokenizerBase",
    ends: Collection[int],
    last_turn_only: bool = False,
) -> Sample:
    """The last turn up to and with its first EOS, its own or one that is appended. A vocabulary without any EOS leaves
    it open."""
    start, end = turns[-1]
    own = tokenizer.eos_token_id
    eos = next((place for place in range(start, end) if ids[place] in ends), None)
    if eos is not None:
        ids = ids[: eos + 1]
    elif ends:
        ids = [*ids[:end], own if isinstance(own, int) else min(ends)]
    return Sample(tuple(ids), (*turns[:-1], (start, len(ids))), bool(ends), last_turn_only)
