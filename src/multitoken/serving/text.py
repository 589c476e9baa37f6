"""Tokens of one answer -> its text as it comes: never half a character, never a part of a stop string."""

from collections.abc import Sequence
from typing import Any

from multitoken.models.text import TextStream


class AnswerText:
    """`push` tokens, and get the text that is certain by then; the texts end to end, with that of `end`, are the whole.

    stops: strings that end the text; the first to come is cut off, with all that is behind it, and `stopped` says so.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str] = ()) -> None:
        self._text = TextStream(lambda ids: tokenizer.decode(ids, skip_special_tokens=True))
        self._stops = tuple(stops)
        self._held = ""  # what may be the beginning of a stop string
        self.stopped = False

    def push(self, tokens: Sequence[int]) -> str:
        """The text that these tokens make certain."""
        return self._without_stop(self._text.add(tokens))

    def end(self) -> str:
        """The text that was held back."""
        rest = self._without_stop(self._text.add((), last=True)) + self._held
        self._held = ""
        return rest

    def _without_stop(self, fresh: str) -> str:
        if self.stopped:
            return ""
        if not self._stops:
            return fresh
        text = self._held + fresh
        places = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if places:
            self.stopped, self._held = True, ""
            return text[: min(places)]
        held = max(_overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of the text that the stop string begins with."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
