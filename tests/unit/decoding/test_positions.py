"""The number of positions that a model has."""

import pytest

from benchmarks.tiny_families import tiny_model
from multitoken.decoding import Decoder, DecodingError, NextToken


def test_mpt_ends_with_its_table_of_distances() -> None:
    """Its config names the limit differently. A request beyond it must be refused, or it would fail in a step and take all other
    rows of a server with it."""
    decoder = Decoder(tiny_model("mpt", max_seq_len=32))
    assert (
        sum(len(chunk.token_ids) for chunk in decoder.decode([[5] * 20], policy=NextToken(), max_new_tokens=12)) == 12
    )
    with pytest.raises(DecodingError, match="more than the model's 32 positions"):
        decoder.decode([[5] * 20], policy=NextToken(), max_new_tokens=13)
