"""Tokens of one answer -> its text as it comes: never half a character, never a part of a stop string."""

from collections.abc import Sequence
from typing import Any

_MISSING = "\ufffd"  # what a decoder writes for bytes that are no character, or not yet one


class TextStream:
    """`push` tokens, and get the text that is certain by then; the texts end to end, with that of `end`, are the whole.

    stops: strings that end the text; the first to come is cut off, with all that is behind it, and `stopped` says so.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stops = tuple(stops)
        # A piece is decoded behind the one before it: the first word of a text loses its space in some tokenizers.
        self._window: list[int] = []
        self._before = 0  # tokens of the window whose text is out
        self._shown = 0  # characters of the window's text that are out
        self._held = ""  # what may be the beginning of a stop string
        self.stopped = False

    def push(self, tokens: Sequence[int]) -> str:
        """The text that these tokens make certain."""
        self._window += tokens
        text = self._decode()
        unsure = len(text) - len(text.rstrip(_MISSING))
        fresh = text[self._shown : len(text) - unsure]
        self._shown += len(fresh)
        if fresh and not unsure:
            self._window = self._window[self._before :]
            self._before, self._shown = len(self._window), len(self._decode())
        return self._without_stop(fresh)

    def end(self) -> str:
        """The text that was held back."""
        rest = self._without_stop(self._decode()[self._shown :]) + self._held
        self._held = ""
        return rest

    def _decode(self) -> str:
        text = self._tokenizer.decode(self._window, skip_special_tokens=True)
        assert isinstance(text, str)
        return text

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
