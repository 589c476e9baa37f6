"""The streamed text must be the text of the whole answer."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

from multitoken.serving.text import AnswerText


def byte_level() -> PreTrainedTokenizerFast:
    """256 tokens of one byte each, as in GPT-2."""
    backend = Tokenizer(models.BPE({letter: i for i, letter in enumerate(sorted(ByteLevel.alphabet()))}, []))
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def byte_fallback() -> PreTrainedTokenizerFast:
    """As in Llama 2: words with a mark for the space before them, and bytes for everything else."""
    words = ["<unk>", "▁a", "▁bc", "d", "▁", *(f"<0x{i:02X}>" for i in range(256))]
    backend = Tokenizer(
        models.BPE({word: i for i, word in enumerate(words)}, [], byte_fallback=True, unk_token="<unk>")
    )
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")


TOKENIZERS = {"bytes": byte_level(), "fallback": byte_fallback()}


def ids_of(name: str, text: str) -> list[int]:
    if name == "bytes":
        alphabet = sorted(ByteLevel.alphabet())
        order = {letter: i for i, letter in enumerate(alphabet)}
        pre = ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
        return [order[letter] for piece, _ in pre for letter in piece]
    return [5 + byte for byte in text.encode()]


def pieces_of(name: str, ids: Sequence[int], size: int, stops: Sequence[str] = ()) -> tuple[list[str], AnswerText]:
    stream = AnswerText(TOKENIZERS[name], stops)
    pieces = []
    for i in range(0, len(ids), size):
        pieces.append(stream.push(ids[i : i + size]))
        if stream.stopped:
            return pieces, stream
    return [*pieces, stream.end()], stream


@pytest.mark.parametrize("name", TOKENIZERS)
@given(
    text=st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\ufffd"), max_size=30),
    size=st.integers(1, 5),
)
def test_never_half_a_character(name: str, text: str, size: int) -> None:
    """The bytes of a character may come in several tokens, and the tokens in several chunks."""
    ids = ids_of(name, text)
    pieces, _ = pieces_of(name, ids, size)
    assert "".join(pieces) == TOKENIZERS[name].decode(ids)
    assert not any("\ufffd" in piece for piece in pieces)


@given(ids=st.lists(st.integers(0, 255), max_size=40), size=st.integers(1, 5))
def test_whatever_the_bytes_the_pieces_are_the_whole(ids: list[int], size: int) -> None:
    """A model may write bytes that are not a character."""
    pieces, _ = pieces_of("bytes", ids, size)
    assert "".join(pieces) == TOKENIZERS["bytes"].decode(ids)


@given(ids=st.lists(st.integers(0, 4), max_size=20), size=st.integers(1, 5))
def test_words_keep_the_space_before_them(ids: list[int], size: int) -> None:
    """Such a tokenizer removes a space at the beginning of everything that it decodes. A skipped <unk> is not a
    beginning."""
    pieces, _ = pieces_of("fallback", ids, size)
    assert "".join(pieces) == TOKENIZERS["fallback"].decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("name", TOKENIZERS)
@given(
    text=st.text("abc \u00e9\U0001f600", max_size=30),
    stops=st.lists(st.text("abc \u00e9\U0001f600", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_stop_strings_cut_and_never_show(name: str, text: str, stops: list[str]) -> None:
    """Fed token by token, the text ends before the stop string that is complete first. What might begin one is held
    back."""
    ids = ids_of(name, text)
    whole = TOKENIZERS[name].decode(ids)
    pieces, stream = pieces_of(name, ids, 1, stops)
    ends = [(whole.find(stop) + len(stop), whole.find(stop)) for stop in stops if stop in whole]
    if not ends:
        assert "".join(pieces) == whole and not stream.stopped
        return
    first_end = min(end for end, _ in ends)
    assert "".join(pieces) == whole[: min(begin for end, begin in ends if end == first_end)]
    assert stream.stopped and stream.end() == "" and stream.push(ids[:1]) == ""


def test_a_text_that_looks_like_a_stop_string_goes_on() -> None:
    """Text that was held back must be shown in the end: here `ab`, which could begin `abc`, once another letter
    follows."""
    stream = AnswerText(TOKENIZERS["bytes"], ["abc"])
    shown = [stream.push(ids_of("bytes", letter)) for letter in "xababd"]
    assert shown == ["x", "", "", "ab", "", "abd"]
