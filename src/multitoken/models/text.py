"""Turn the ids of an answer into text, piece by piece as they arrive."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from multitoken.decoding.records import Chunk

_CONTEXT = 16  # earlier tokens that are decoded again: the text of a token can depend on the tokens before it
_UNFINISHED = "\ufffd"  # stands for the bytes of a character that is not complete yet

Decode = Callable[[list[int]], str]


class TextStream:
    """Gives pieces of text that together are the text of all ids. Each id is decoded only a few times, however long the answer
    is."""

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._ids: list[int] = []  # the last ones
        self._shown = ""  # the part of their text that was already returned
        self._most = 2 * _CONTEXT  # ids that are kept before older ones are dropped

    def add(self, ids: Sequence[int], *, last: bool = False) -> str:
        """The text that these ids add. Only the first bytes of an incomplete character are held back; the last call returns even
        those, as the replacement character."""
        self._ids += ids
        text = self._decode(self._ids)
        if not last and text.endswith(_UNFINISHED):
            whole = text.rstrip(_UNFINISHED)
            fresh, self._shown = whole[len(self._shown) :], max(self._shown, whole, key=len)
            return fresh
        fresh, self._shown = text[len(self._shown) :], text
        if len(self._ids) > self._most:
            self._let_go(text)
        return fresh

    def _let_go(self, text: str) -> None:
        """Drop all but the last ids, if these have the same text alone as after the others. They must not start within a
        character, and they must have some text: otherwise the next ids would be decoded like the beginning of a text, where
        spaces are dropped."""
        for size in range(_CONTEXT, _CONTEXT - 4, -1):
            shown = self._decode(self._ids[-size:])
            if shown.strip() and text.endswith(shown):
                self._ids, self._shown, self._most = self._ids[-size:], shown, 2 * _CONTEXT
                return
        self._most = 2 * len(self._ids)


def with_text(chunks: Iterable[Chunk], decode: Decode) -> Iterator[Chunk]:
    """The chunks of one answer, each with its text."""
    stream = TextStream(decode)
    for chunk in chunks:
        yield replace(chunk, text=stream.add(chunk.token_ids, last=chunk.finish is not None))
