"""`Model`: the texts of chunks, and what answers and errors say."""

import pytest
import torch
import transformers

import multitoken as mt
from multitoken.decoding import Chunk
from multitoken.decoding.engine import Engine
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
    """A character may be spread over tokens, and tokens over chunks. Shown too early, its bytes would be garbage."""
    ids = base.tokenizer("für 😀 漢字, ok 😀", add_special_tokens=False).input_ids
    ids = [*ids, base.tokenizer.eos_token_id] if ended else ids
    chunks = list(base._with_text(in_chunks(ids, size)))
    assert "".join(c.text for c in chunks) == "für 😀 漢字, ok 😀"
    assert not any("\ufffd" in c.text for c in chunks)


def test_a_character_cut_by_max_new_tokens_is_shown_as_cut(base) -> None:
    """Leaving the character out would hide that something is missing, and generate and stream would differ."""
    ids = base.tokenizer("ok 😀", add_special_tokens=False).input_ids[:-1]
    chunks = list(base._with_text(in_chunks(ids, 1)))
    assert "".join(c.text for c in chunks) == base.tokenizer.decode(ids) == "ok \ufffd"


def test_answers_say_how_they_ended_and_how_long_each_took(base) -> None:
    """In a batch, a short answer is finished before the last one."""
    prompts = ["Count from 5 to 7.", "Count from 5 to 60."]
    short, cut = base.generate(prompts, max_new_tokens=40)
    assert cut.finish_reason == "length" and len(cut.token_ids) == 40
    assert short.finish_reason == ("stop" if short.token_ids[-1] == base.tokenizer.eos_token_id else "length")
    assert 0 < short.seconds <= cut.seconds
    stopped = base.generate("Count from 5 to 60.", stop_strings=["8"], max_new_tokens=40)
    assert stopped.finish_reason == "stop" and stopped.text.endswith("8")


def test_logprobs_are_the_model_s_own(base, caplog) -> None:
    """Log probabilities must equal those of one plain forward pass over the whole text; the temperature does not change
    them. There must be no warning about flags that the user did not give."""
    ids = base.encode("Count from 5 to 9.")
    transformers.logging.enable_propagation()
    try:
        answer = base.generate(ids, max_new_tokens=12, temperature=0.7, seed=1, logprobs=True)
    finally:
        transformers.logging.disable_propagation()
    assert not caplog.records
    with torch.no_grad():
        logits = base.hf(torch.tensor([[*ids, *answer.token_ids]])).logits[0, len(ids) - 1 : -1]
    expected = torch.log_softmax(logits, -1).gather(1, torch.tensor(answer.token_ids)[:, None])[:, 0]
    torch.testing.assert_close(torch.tensor(answer.logprobs), expected, rtol=1e-4, atol=1e-4)
    assert answer.chunks[0].logits is None, "a vocabulary for every token would be kept"
    assert base.generate(ids, max_new_tokens=2).logprobs is None


def test_token_ids_are_a_prompt_and_lists_of_them_a_batch(base) -> None:
    """A list of whole numbers is one prompt, not a batch of one-token prompts."""
    ids = base.encode("Count from 5 to 9.")
    answer = base.generate("Count from 5 to 9.", max_new_tokens=8)
    assert base.generate(ids, max_new_tokens=8).token_ids == answer.token_ids
    assert [each.token_ids for each in base.generate([ids, ids], max_new_tokens=8)] == [answer.token_ids] * 2


def test_a_length_that_nobody_asked_for_is_shortened_where_room_ends(base) -> None:
    """A long prompt is not an error. Only a length that was asked for and does not fit is refused."""
    ids = [10] * (2048 - 6)
    assert len(base.generate(ids, eos_token_id=2047).token_ids) == 6
    with pytest.raises(mt.DecodingError, match="2048 positions"):
        base.generate(ids, max_new_tokens=7)


def test_every_error_is_a_multitoken_error() -> None:
    """One except clause must be enough for all errors."""
    for name in mt.__all__:
        thing = getattr(mt, name)
        if isinstance(thing, type) and issubclass(thing, Exception):
            assert issubclass(thing, mt.MultitokenError), name
    assert issubclass(mt.DecodingError, ValueError)


def test_a_batch_size_bounds_how_many_prompts_run_side_by_side(base, monkeypatch) -> None:
    """Guards against a list of a thousand prompts that needs a cache of a thousand rows, and against answers in the
    wrong order."""
    most = []
    run = Engine.step
    monkeypatch.setattr(Engine, "step", lambda engine: (run(engine), most.append(engine.running))[0])
    prompts = [f"Count from {first} to {first + 3 + first % 5}." for first in range(11, 20)]
    three = base.generate(prompts, max_new_tokens=30, batch_size=3)
    assert max(most) == 3
    assert [a.token_ids for a in three] == [a.token_ids for a in base.generate(prompts, max_new_tokens=30)]
    with pytest.raises(mt.UsageError, match="batch_size is 0; expected a whole number of at least 1"):
        base.generate(prompts, batch_size=0)


def test_no_bar_goes_into_a_log(capfd) -> None:
    """transformers shows a progress bar while it loads tensors, even into pipes and files. The user's own setting must
    stay."""
    logging = transformers.utils.logging
    before = logging.is_progress_bar_enabled()
    for enable, chosen in ((logging.enable_progress_bar, True), (logging.disable_progress_bar, False)):
        enable()
        mt.load(checkpoint("base"))
        assert "Loading weights" not in capfd.readouterr().err
        assert logging.is_progress_bar_enabled() == chosen
    (logging.enable_progress_bar if before else logging.disable_progress_bar)()
