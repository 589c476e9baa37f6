"""Record -> token ids. Prompt and response are tokenised separately and joined; a chat template, if any, renders both.

They are tokenised separately because a decoded response starts after exactly the prompt's ids: a merge across the
boundary in training would never occur at inference. The boundary is the data's own: nothing is inserted between a plain
prompt and its response. A conversation is split in the same way at each of the assistant's turns.
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

    A turn's last id is the EOS token that ends it, wherever the template has one. `ended`: the last turn has one.
    `last_turn_only`: the chat template does not allow earlier turns to be told apart. `sampled`: the teacher sampled it.
    """

    ids: tuple[int, ...]
    turns: tuple[Span, ...]
    ended: bool
    last_turn_only: bool = False
    sampled: bool = False

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        """The ids before the first turn."""
        return self.ids[: self.turns[0][0]] if self.turns else self.ids

    @property
    def response_ids(self) -> tuple[int, ...]:
        """The first turn and everything after it."""
        return self.ids[len(self.prompt_ids) :]

    def predictable(self, train_on: str) -> tuple[Span, ...]:
        """Spans of tokens that a block may predict. The first token of the sample has nothing before it to predict from."""
        turns = self.turns if train_on == "response" else ((0, len(self.ids)),)
        return tuple((max(1, start), end) for start, end in turns)

    def cut(self, length: int) -> "Sample":
        """The first `length` ids at most. A sample that is cut has not ended."""
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
    """The ids of a record. The response is cut so that prompt and response together have at most `max_length` ids.

    `eos_ids` are tokens that end a response in addition to the tokenizer's own EOS (chat models often have two).
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
    """A name for a sequence of ids. It is the same on every machine and for every order of the data."""
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
    """If the assistant has the last message, all its turns are trained on. Otherwise the conversation is a prompt."""
    if messages[-1]["role"] != "assistant":
        return Prompt(tuple(encode_prompt(list(messages), tokenizer, tools=tools)))
    if len(messages) == 1:
        raise UsageError("the only message is the assistant's; expected a prompt before it")
    chat = render_turns(messages, tokenizer, tools)
    # A generation config may name ids that the tokenizer does not have.
    closings = [str(token) for end in ends if (token := tokenizer.convert_ids_to_tokens(end)) is not None]
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
    """The position after the token that ends a turn. The given span may include what the template writes after that
    token (a line break, which is not part of the turn), or may stop before the token."""
    found = [place + len(token) for token in closings if (place := text.find(token, start, end + len(token))) >= 0]
    return min(found, default=end)


def _sample(
    ids: list[int],
    turns: list[Span],
    tokenizer: "PreTrainedTokenizerBase",
    ends: Collection[int],
    last_turn_only: bool = False,
) -> Sample:
    """A sample whose last turn ends with its first EOS; one is appended if the turn has none. If the vocabulary has no
    EOS, the turn stays open."""
    start, end = turns[-1]
    own = tokenizer.eos_token_id
    eos = next((place for place in range(start, end) if ids[place] in ends), None)
    if eos is not None:
        ids = ids[: eos + 1]
    elif ends:
        ids = [*ids[:end], own if isinstance(own, int) else min(ends)]
    return Sample(tuple(ids), (*turns[:-1], (start, len(ids))), bool(ends), last_turn_only)
