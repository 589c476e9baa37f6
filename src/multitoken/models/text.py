"""From the ids of an answer to its text, piece by piece as they come."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from multitoken.decoding.records import Chunk

_CONTEXT = 16  # tokens in front that are decoded again: what a tokenizer does to a token depends on those before it
_UNFINISHED = "\ufffd"  # stands for the bytes of a character whose rest is still to come

Decode = Callable[[list[int]], str]


class TextStream:
    """Texts whose sum is the text of all ids. Each id is decoded a few times only, however long the answer becomes."""

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._ids: list[int] = []  # the last ones
        self._shown = ""  # what was given out of their text
        self._most = 2 * _CONTEXT  # ids that are kept before older ones are let go

    def add(self, ids: Sequence[int], *, last: bool = False) -> str:
        """The text that these ids add. Nothing is held back but the first bytes of a character; the last call gives even
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
        """Of all but the last ids, where these say on their own what they say behind the others: not from within a character, and
        not without any text, which would pass for the beginning, where spaces are dropped."""
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
