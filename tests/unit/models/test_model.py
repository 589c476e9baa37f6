"""`Model`: texts of chunks."""

import pytest

import multitoken as mt
from multitoken.decoding import Chunk
from multitoken.quickstart.embedded import checkpoint


@pytest.fixture(scope="module")
def base():
    return mt.load(checkpoint("base"))


def in_chunks(ids: list[int], size: int) -> list[Chunk]:
    parts = [tuple(ids[i : i + size]) for i in range(0, len(ids), size)]
    return [Chunk(0, p, (1.0,) * len(p), finish="length" if p is parts[-1] else None) for p in parts]


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("ended", [True, False])
def test_texts_of_chunks_end_to_end_are_the_answer(base, size: int, ended: bool) -> None:
    """A character may be spread over tokens, and tokens over chunks; shown early, its bytes would be garbage."""
    ids = base.tokenizer("für 😀 漢字, ok 😀", add_special_tokens=False).input_ids
    ids = [*ids, base.tokenizer.eos_token_id] if ended else ids
    chunks = list(base._with_text(in_chunks(ids, size)))
    assert "".join(c.text for c in chunks) == "für 😀 漢字, ok 😀"
    assert not any("\ufffd" in c.text for c in chunks)


def test_a_character_cut_by_max_new_tokens_is_shown_as_cut(base) -> None:
    """Silence would hide that something is missing, and generate and stream would differ."""
    ids = base.tokenizer("ok 😀", add_special_tokens=False).input_ids[:-1]
    chunks = list(base._with_text(in_chunks(ids, 1)))
    assert "".join(c.text for c in chunks) == base.tokenizer.decode(ids) == "ok \ufffd"
