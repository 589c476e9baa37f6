"""Turns the tokens of one answer into text as they arrive: never half a character, never part of a stop string."""

from collections.abc import Sequence
from typing import Any

from multitoken.models.text import TextStream


class AnswerText:
    """`push` takes tokens and returns the text that is certain by then. All returned texts and that of `end`, joined,
    are the whole answer.

    stops: strings that end the text. The first one that occurs is cut off with everything after it, and
    `stopped` is set.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str] = ()) -> None:
        self._text = TextStream(lambda ids: tokenizer.decode(ids, skip_special_tokens=True))
        self._stops = tuple(stops)
        self._held = ""  # text that may be the beginning of a stop string
        self.stopped = False

    def push(self, tokens: Sequence[int]) -> str:
        """The text that becomes certain with these tokens."""
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
    """How many characters at the end of the text may be the beginning of the stop string."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
