"""Texts of chunks: joined, they are the whole text, and the work to decode them grows with its length, not with the
square."""

import random

import pytest

from multitoken.models.text import TextStream
from multitoken.quickstart.embedded import checkpoint
from tests.unit.training.conftest import make_byte_tokenizer


def metaspace():
    """A tokenizer like SentencePiece's, which drops the space before a text's first word and falls back to bytes."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    words = ["<unk>", "<s>", "</s>", *bytes_, *(f"\u2581w{i}" for i in range(30)), *"abcdef.", "\u2581"]
    backend = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, [], byte_fallback=True))
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def embedded():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(checkpoint("base"))


@pytest.mark.parametrize("make", [metaspace, embedded, make_byte_tokenizer])
def test_pieces_are_the_whole(make) -> None:
    """Random ids are the worst case: broken characters, special tokens in between, words that begin anywhere."""
    tokenizer = make()
    # Without single fallback bytes: an invalid byte would also make bytes before it invalid that were already shown.
    words = [i for i in range(len(tokenizer)) if not tokenizer.convert_ids_to_tokens(i).startswith("<0x")]
    draw = random.Random(0)
    for trial in range(60):
        ids = [draw.choice(words) for _ in range(draw.randrange(1, 150))]
        if trial % 3 == 0:  # long runs of tokens without text
            ids[20:60] = [tokenizer.eos_token_id] * 40
        if trial % 3 == 1:
            ids = tokenizer("Zoë paid 5 € — 猫が好き 🦜🦜.", add_special_tokens=False)["input_ids"] * 3
        if trial % 3 == 2:
            ids += tokenizer("猫が好きです" * 9, add_special_tokens=False)["input_ids"]
        stream, pieces, at = TextStream(lambda ids: tokenizer.decode(ids, skip_special_tokens=True)), [], 0
        while at < len(ids):
            size = draw.choice([1, 1, 2, 5, 9])
            pieces.append(stream.add(ids[at : at + size], last=at + size >= len(ids)))
            at += size
        assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=True)


def test_what_is_decoded_is_linear_in_the_text() -> None:
    """Decoding the whole text again for each chunk would decode 2 million ids for an answer of 2,000."""
    decoded = []

    def decode(ids: list[int]) -> str:
        decoded.append(len(ids))
        return "".join(chr(97 + i % 26) for i in ids)

    stream = TextStream(decode)
    text = "".join(stream.add([i], last=i == 1999) for i in range(2000))
    assert text == "".join(chr(97 + i % 26) for i in range(2000))
    assert sum(decoded) < 40 * 2000
