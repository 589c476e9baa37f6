"""Turns pieces into the JSON of OpenAI's API, as one answer or as stream events."""

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .driver import Piece, TokenLogprob
from .protocol import ChatBody, CompletionBody, GenerationBody


@dataclass
class Row:
    """The pieces of one choice so far."""

    pieces: list[Piece] = field(default_factory=list)
    tokens: int = 0
    characters: int = 0

    def add(self, piece: Piece) -> None:
        self.pieces.append(piece)
        self.tokens += len(piece.token_ids)
        self.characters += len(piece.text)

    def whole(self) -> Piece:
        """All pieces as one."""
        return Piece(
            "".join(piece.text for piece in self.pieces),
            tuple(i for piece in self.pieces for i in piece.token_ids),
            tuple(c for piece in self.pieces for c in piece.confidences),
            self.pieces[-1].finish,
            tuple(text for piece in self.pieces for text in piece.texts),
            tuple(each for piece in self.pieces for each in piece.logprobs),
        )


class Wire:
    """Builds the answer to one body; make a new object for each. `event` must be called with every piece, in order."""

    kind = ""
    event_kind = ""
    prefix = ""

    def __init__(self, body: GenerationBody, prompt_tokens: int, rows: int, tokenizer: Any) -> None:
        self._body = body
        self._prompt_tokens = prompt_tokens
        self._tokenizer = tokenizer
        self.rows = [Row() for _ in range(rows)]
        self._head = {
            "id": f"{self.prefix}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": body.model,
        }

    def event(self, index: int, piece: Piece) -> dict[str, Any]:
        """The stream event for one piece."""
        row = self.rows[index]
        choice = self._delta(row, index, piece)
        row.add(piece)
        self._extend(choice, piece, None)
        event = {**self._head, "object": self.event_kind, "choices": [choice]}
        if self._wants_usage:
            event["usage"] = None
        return event

    def last_event(self) -> dict[str, Any] | None:
        """The event with the usage; None if the request does not ask for it."""
        if not self._wants_usage:
            return None
        return {**self._head, "object": self.event_kind, "choices": [], "usage": self.usage()}

    def answer(self) -> dict[str, Any]:
        choices = []
        for index, row in enumerate(self.rows):
            piece = row.whole()
            choice = self._choice(index, piece)
            self._extend(choice, piece, [len(each.token_ids) for each in row.pieces])
            choices.append(choice)
        return {**self._head, "object": self.kind, "choices": choices, "usage": self.usage()}

    def usage(self) -> dict[str, Any]:
        """Tokens and forward passes. Tokens per step leaves out the prefill and the tokens that it wrote."""
        written = sum(row.tokens for row in self.rows)
        passes = sum(len(row.pieces) for row in self.rows)
        begun = [row for row in self.rows if row.pieces]
        steps = passes - len(begun)
        after = written - sum(len(row.pieces[0].token_ids) for row in begun)
        return {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": written,
            "total_tokens": self._prompt_tokens + written,
            "forward_passes": passes,
            "tokens_per_step": after / steps if steps else 0.0,
        }

    @property
    def _wants_usage(self) -> bool:
        options = self._body.stream_options
        return options is not None and options.include_usage

    def _extend(self, choice: dict[str, Any], piece: Piece, chunks: list[int] | None) -> None:
        """Add the fields that OpenAI's API does not have, if the request asks for them."""
        if self._body.return_token_ids:
            choice["token_ids"] = list(piece.token_ids)
        if self._body.mtp.confidences:
            choice["mtp"] = {"tokens": list(piece.texts), "confidences": list(piece.confidences)}
            if chunks is not None:
                choice["mtp"]["chunk_sizes"] = chunks

    def _choice(self, index: int, piece: Piece) -> dict[str, Any]:
        raise NotImplementedError

    def _delta(self, row: Row, index: int, piece: Piece) -> dict[str, Any]:
        raise NotImplementedError

    def _text_of(self, token: int) -> str:
        return self._tokenizer.decode([token])


class CompletionWire(Wire):
    kind = event_kind = "text_completion"
    prefix = "cmpl"

    def _choice(self, index: int, piece: Piece) -> dict[str, Any]:
        return self._of(index, piece, 0)

    def _delta(self, row: Row, index: int, piece: Piece) -> dict[str, Any]:
        return self._of(index, piece, row.characters)

    def _of(self, index: int, piece: Piece, offset: int) -> dict[str, Any]:
        logprobs = None
        if self._body.top is not None:
            offsets = []
            for text in piece.texts:
                offsets.append(offset)
                offset += len(text)
            logprobs = {
                "tokens": [self._text_of(each.token_id) for each in piece.logprobs],
                "token_logprobs": [each.logprob for each in piece.logprobs],
                "top_logprobs": [{self._text_of(i): value for i, value in each.top} for each in piece.logprobs],
                "text_offset": offsets,
            }
        return {"index": index, "text": piece.text, "logprobs": logprobs, "finish_reason": piece.finish}


class ChatWire(Wire):
    kind = "chat.completion"
    event_kind = "chat.completion.chunk"
    prefix = "chatcmpl"

    def _choice(self, index: int, piece: Piece) -> dict[str, Any]:
        message = {"role": "assistant", "content": piece.text, "refusal": None}
        return {
            "index": index,
            "message": message,
            "logprobs": self._logprobs(piece.logprobs),
            "finish_reason": piece.finish,
        }

    def _delta(self, row: Row, index: int, piece: Piece) -> dict[str, Any]:
        delta = {"content": piece.text} if row.pieces else {"role": "assistant", "content": piece.text}
        return {
            "index": index,
            "delta": delta,
            "logprobs": self._logprobs(piece.logprobs),
            "finish_reason": piece.finish,
        }

    def _logprobs(self, found: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        if self._body.top is None:
            return None
        content = []
        for each in found:
            top = [self._token(i, value) for i, value in each.top]
            content.append({**self._token(each.token_id, each.logprob), "top_logprobs": top})
        return {"content": content, "refusal": None}

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        text = self._text_of(token)
        # A token may be part of a character. Then its bytes cannot be recovered from the decoded text.
        return {"token": text, "logprob": logprob, "bytes": None if "\ufffd" in text else list(text.encode())}


def wire_of(body: GenerationBody, prompt_tokens: int, rows: int, tokenizer: Any) -> Wire:
    kind = {CompletionBody: CompletionWire, ChatBody: ChatWire}[type(body)]
    return kind(body, prompt_tokens, rows, tokenizer)
