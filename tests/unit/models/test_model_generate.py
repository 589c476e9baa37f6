"""`Model.generate` and `Model.stream`: transformers' arguments in the interface that takes and returns text."""

import pytest
import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, TextStreamer

import multitoken as mt
from multitoken.decoding import DecodingError
from multitoken.errors import UsageError
from multitoken.models.model import Model
from multitoken.models.mtp_config import MtpConfig
from tests.parity.families import MASK
from tests.parity.generating import HOLDING, TOKENIZER, model_of

PROMPTS = ["abcHello7", "xyz", "mnopQRSTuvw0123"]
HOW = {"max_new_tokens": 20, "policy": mt.Exact(0.0), "adaptive": False}


@pytest.fixture
def model() -> Model:
    mtp = MtpConfig(k=6, mask_token_id=MASK, mask_token="<95>", method="full", base_name="b", base_hash="sha256:0")
    return Model(model_of(HOLDING), TOKENIZER, mtp)


def ids(answers) -> list[tuple[int, ...]]:
    return [answer.token_ids for answer in answers]


class NoTwice(LogitsProcessor):
    """Forbids all tokens of the prefix. If it saw padding, it would forbid 0, which is a token like others here."""

    def __call__(self, input_ids, scores):
        return scores.scatter(1, input_ids, -torch.inf)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"repetition_penalty": 1.5},
        {"no_repeat_ngram_size": 1},
        {"presence_penalty": 1.0, "frequency_penalty": 0.5},
        {"min_new_tokens": 12, "eos_token_id": list(range(20, 60))},
        {"exponential_decay_length_penalty": (2, 1.5)},
        {"stop_strings": ["a", "u"]},
        {"prefix_allowed_tokens_fn": lambda row, ids: [t for t in range(95) if (t + len(ids)) % 2]},
        {"logits_processor": LogitsProcessorList([NoTwice()])},
    ],
    ids=lambda options: ", ".join(options),
)
def test_prompts_side_by_side_equal_one_by_one(model: Model, options: dict) -> None:
    """Rows of a batch have different lengths. An option that miscounts from the prompt's end, or sees padding, would
    change answers."""
    model.hf.generation_config.suppress_tokens = None
    with torch.no_grad():
        model.hf.lm_head.weight[0] *= 1.2  # so that the padding's id is written now and then
    together = model.generate(PROMPTS, **HOW, **options)
    assert ids(together) == [model.generate(prompt, **HOW, **options).token_ids for prompt in PROMPTS]
    if options:
        assert ids(together) != ids(model.generate(PROMPTS, **HOW))


@pytest.mark.parametrize(
    "options", [{}, {"seed": 4, "temperature": 3.0}, {"stop_strings": "a", "repetition_penalty": 1.2}], ids=str
)
def test_stream_writes_what_generate_writes(model: Model, options: dict) -> None:
    """The texts of the chunks, joined, must be the text of the answer."""
    answer = model.generate(PROMPTS[0], **HOW, **options)
    chunks = list(model.stream(PROMPTS[0], **HOW, **options))
    assert (
        "".join(chunk.text for chunk in chunks)
        == answer.text
        == TOKENIZER.decode(answer.token_ids, skip_special_tokens=True)
    )
    assert [chunk.token_ids for chunk in chunks] == [chunk.token_ids for chunk in answer.chunks]
    assert sum(len(chunk.token_ids) for chunk in chunks) > len(chunks)


def test_it_is_greedy_unless_asked(model: Model) -> None:
    """A checkpoint that samples by default must not make evaluations random. Its penalties are part of the checkpoint
    and apply."""
    greedy = model.generate(PROMPTS[0], **HOW)
    model.hf.generation_config.do_sample, model.hf.generation_config.temperature = True, 5.0
    for options in (
        {},
        {"temperature": None, "seed": None},
        {"generation_config": GenerationConfig()},
        {"seed": 1, "do_sample": False},
    ):
        assert model.generate(PROMPTS[0], **HOW, **options).token_ids == greedy.token_ids
    for options in ({"seed": 1}, {"temperature": 5.0}, {"top_p": 1.0}, {"do_sample": True}):
        assert model.generate(PROMPTS[0], **HOW, **options).token_ids != greedy.token_ids
    model.hf.generation_config.repetition_penalty = 3.0
    assert model.generate(PROMPTS[0], **HOW).token_ids != greedy.token_ids


def test_a_seed_fixes_the_text_under_every_exact_policy(model: Model) -> None:
    """With one seed, next-token decoding and Exact, adaptive or not, batched or alone, must give the same text."""
    options = {"seed": 9, "temperature": 2.0, "top_k": 0, "max_new_tokens": 20, "adaptive": False}
    plain = ids(model.generate(PROMPTS, policy=mt.NextToken(), **options))
    assert ids(model.generate(PROMPTS, policy=mt.Exact(0.0), **options)) == plain
    assert ids(model.generate(PROMPTS, **{**options, "adaptive": True})) == plain
    assert model.generate(PROMPTS[0], **options).token_ids == plain[0]
    assert ids(model.generate(PROMPTS, **{**options, "seed": 10})) != plain


def test_return_sequences_follow_each_other_and_all_differ(model: Model) -> None:
    """Guards against two equal prompts, or two answers to one prompt, that get the same noise."""
    options = {"seed": 9, "temperature": 5.0, "num_return_sequences": 3, "top_k": 0}
    answers = model.generate([PROMPTS[0], PROMPTS[0]], **HOW, **options)
    assert len(answers) == 6 and len(set(ids(answers))) == 6
    assert ids(model.generate(PROMPTS[0], **HOW, **options)) == ids(answers)[:3]
    with pytest.raises(UsageError, match="num_return_sequences"):
        model.stream(PROMPTS[0], **HOW, **options)


def test_a_generation_config_says_what_the_call_leaves_out(model: Model) -> None:
    """The length and the sampling of a generation config must not be overridden by our own defaults."""
    how = {"policy": mt.Exact(0.0), "adaptive": False}
    config = GenerationConfig(max_new_tokens=7, eos_token_id=[94])
    answer = model.generate(PROMPTS[0], generation_config=config, **how)
    assert len(answer.token_ids) == 7
    config = GenerationConfig(max_length=len(model.encode(PROMPTS[0])) + 4)
    assert len(model.generate(PROMPTS[0], generation_config=config, **how).token_ids) == 4
    sampled = GenerationConfig(do_sample=True, temperature=3.0, max_new_tokens=20)
    found = model.generate(PROMPTS[0], generation_config=sampled, seed=2, **how)
    assert found.token_ids == model.generate(PROMPTS[0], **HOW, temperature=3.0, seed=2).token_ids
    assert (config.do_sample, config.pad_token_id, sampled.eos_token_id) == (None, None, None), "given back as it was"


def test_stop_strings_across_chunks(model: Model) -> None:
    """Chunks of three tokens end in the middle of a stop string. The text must end with the whole stop string."""
    how = {**HOW, "policy": mt.StaticK(3)}
    text = model.generate(PROMPTS[0], **how).text
    for start in range(8):
        stop = text[start : start + 3]
        answer = model.generate(PROMPTS[0], stop_strings=[stop], **how)
        assert stop in answer.text and text.startswith(answer.text) and answer.chunks[-1].finish == "stop"
        assert len(answer.text) <= text.index(stop) + 4, "at most the rest of a token of two letters"


def test_scores_and_streamers_pass_through(model: Model, capsys) -> None:
    """An argument that is accepted and has no effect would be worse than a refused one."""
    answer = model.generate(
        PROMPTS[0], output_scores=True, streamer=TextStreamer(TOKENIZER, True, skip_special_tokens=True), **HOW
    )
    for chunk in answer.chunks:
        assert chunk.scores is not None and chunk.scores.argmax(-1).tolist() == list(chunk.token_ids)
    assert capsys.readouterr().out == answer.text + "\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention_mask": torch.ones(1, 3)}, "attention_mask is not an argument here"),
        ({"input_ids": torch.ones(1, 3)}, "input_ids is not an argument here"),
        ({"max_length": 30}, "max_length is not an argument here; it is replaced by max_new_tokens"),
        ({"return_dict_in_generate": True}, "return_dict_in_generate is not an argument here"),
        ({"mtp": {"policy": "exact"}}, "mtp is not an argument here"),
        ({"num_beams": 3}, "num_beams=3 is not supported"),
        ({"temprature": 1.0}, "did you mean temperature"),
        ({"treshold": 0.5}, "treshold is not supported"),
        ({"temperature": 0.0}, "temperature"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"seed": 1.5}, "seed is 1.5"),
        ({"policy": "exact"}, "policy is 'exact'; expected a policy"),
        ({"max_new_tokens": True}, "max_new_tokens is True"),
        ({"num_return_sequences": 2}, "num_return_sequences"),
    ],
)
def test_what_cannot_be_is_refused_by_name(model: Model, options: dict, message: str) -> None:
    """Nothing is silently ignored, and no error other than our own is raised."""
    with pytest.raises(DecodingError, match=message):
        model.generate(PROMPTS[0], **{**HOW, **options})
    with pytest.raises(DecodingError, match="a streamer takes one prompt, found 3"):
        model.generate(PROMPTS, streamer=TextStreamer(TOKENIZER), **HOW)


class BreaksFor(LogitsProcessor):
    """Fails in the rows that have the token `end` among their first three tokens."""

    def __init__(self, end: int) -> None:
        self.end = end

    def __call__(self, input_ids, scores):
        if self.end in input_ids[0, :3].tolist():
            raise RuntimeError("no such grammar")
        return scores


def test_finished_answers_survive_one_that_fails(model: Model) -> None:
    """Guards against losing an hour's answers because of one row: the error carries the finished ones, in their
    places."""
    whole = model.generate(PROMPTS, **HOW)
    broken = LogitsProcessorList([BreaksFor(model.encode("xyz")[0])])
    with pytest.raises(
        mt.RowsFailed, match="row 1: a logits processor failed: RuntimeError: no such grammar"
    ) as caught:
        model.generate(PROMPTS, **HOW, logits_processor=broken)
    assert isinstance(caught.value, DecodingError) and list(caught.value.errors) == [1]
    answers = caught.value.answers
    assert answers[1] is None and [answers[i].token_ids for i in (0, 2)] == [whole[i].token_ids for i in (0, 2)]
    assert [answers[i].text for i in (0, 2)] == [whole[i].text for i in (0, 2)]
