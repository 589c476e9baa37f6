"""`generate` of `decoding` writes what transformers' own writes, for each option and wherever chunks end."""

import functools
from collections.abc import Callable

import pytest
import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
    WatermarkingConfig,
)
from transformers.generation.stopping_criteria import EosTokenCriteria, MaxLengthCriteria

from multitoken.decoding import DecodingError
from multitoken.decoding.generate import generate
from tests.parity.families import EOS, MASK
from tests.parity.generating import (
    EXACT,
    FAMILIES,
    HOLDING,
    NEW,
    PROMPTS,
    TOKENIZER,
    model_of,
    new_tokens,
    ours,
    padded,
    reference,
    sizes,
)


class NotTheLast(LogitsProcessor):
    """Forbids a repetition of the last token, and a sum of all ids that is divisible by 3. It looks at the whole prefix."""

    def __call__(self, input_ids, scores):
        scores = scores.clone()
        scores[torch.arange(len(scores)), input_ids[:, -1]] = -torch.inf
        after = input_ids.sum(1)[:, None] + torch.arange(scores.shape[1])
        return scores.masked_fill(after % 3 == 0, -torch.inf)


Options = dict[str, object]
OPTIONS: dict[str, Callable[[list[int]], Options]] = {  # made from the tokens that plain decoding writes
    "repetition_penalty": lambda plain: {"repetition_penalty": 4.0},
    "encoder_repetition_penalty": lambda plain: {"encoder_repetition_penalty": 1.5},
    "no_repeat_ngram_size": lambda plain: {"no_repeat_ngram_size": 1},
    "encoder_no_repeat_ngram_size": lambda plain: {"encoder_no_repeat_ngram_size": 1},
    "bad_words_ids": lambda plain: {"bad_words_ids": [[plain[0]], plain[3:5]]},
    "eos_token_id": lambda plain: {"eos_token_id": [EOS, plain[7], plain[9]]},
    "no eos_token_id": lambda plain: {"eos_token_id": None},
    "min_new_tokens": lambda plain: {"eos_token_id": [EOS, plain[2]], "min_new_tokens": 9},
    "min_length": lambda plain: {"eos_token_id": [EOS, plain[2]], "min_length": 22},
    "suppress_tokens": lambda plain: {"suppress_tokens": [plain[0], plain[5]]},
    "begin_suppress_tokens": lambda plain: {"begin_suppress_tokens": [plain[0]]},
    "forced_eos_token_id": lambda plain: {"forced_eos_token_id": EOS, "max_new_tokens": 7},
    "exponential_decay_length_penalty": lambda plain: {"exponential_decay_length_penalty": (3, 1.6)},
    "sequence_bias": lambda plain: {"sequence_bias": {(plain[0],): -9.0, tuple(plain[3:5]): -20.0, (40,): 3.0}},
    "watermarking_config": lambda plain: {"watermarking_config": WatermarkingConfig(bias=6.0)},
    "prefix_allowed_tokens_fn": lambda plain: {
        "prefix_allowed_tokens_fn": lambda row, ids: [t for t in range(6, 90) if (t + len(ids) + row) % 2]
    },
    "logits_processor": lambda plain: {"logits_processor": LogitsProcessorList([NotTheLast()])},
    "max_length": lambda plain: {"max_length": 26, "max_new_tokens": None},
}
MAIN = ["repetition_penalty", "min_new_tokens", "logits_processor"]
CASES = [(HOLDING, name) for name in OPTIONS] + [("llama", name) for name in OPTIONS]
CASES.remove((HOLDING, "no eos_token_id"))  # this model writes no EOS
CASES += [(family, name) for family in FAMILIES[2:] for name in MAIN]


@pytest.fixture(scope="module")
def models() -> dict:
    return {family: model_of(family) for family in FAMILIES}


@pytest.mark.parametrize(("family", "name"), CASES)
def test_every_option_writes_what_transformers_writes(models, family: str, name: str) -> None:
    """An option that is dropped, or is shown a prefix with one draft too many, changes a text. Rows are decoded alone and in a
    padded batch, where transformers makes some processors for all rows at once."""
    model = models[family]
    told, held = [], set()
    for prompt in PROMPTS:
        plain = written(family, model, tuple(prompt))
        options, chunks = OPTIONS[name](plain), []
        wanted = reference(model, [prompt], **options)
        assert torch.equal(ours(model, [prompt], mtp_chunks=chunks, **options), wanted)
        told.append(wanted[0, len(prompt) :].tolist() != (plain[: plain.index(EOS) + 1] if EOS in plain else plain))
        held |= sizes(chunks)
    assert any(told), "the option should change something, or its test proves nothing"
    if family == HOLDING and name not in ("logits_processor", "prefix_allowed_tokens_fn"):
        assert max(held) > 2, "drafts should hold, or chunks prove nothing"
    if "eager" not in family:  # transformers' eager mask turns its padded float64 rows into NaN
        assert torch.equal(ours(model, PROMPTS, **options), reference(model, PROMPTS, **options))


@functools.cache
def written(family: str, model, prompt: tuple[int, ...]) -> list[int]:
    """The tokens of plain decoding that EOS does not end."""
    return reference(model, [list(prompt)], eos_token_id=None)[0, len(prompt) :].tolist()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_of_a_padded_batch_equal_single_rows(models, family: str, side: str) -> None:
    """Padding on either side must be invisible to the model and to a repetition penalty."""
    model = models[family]
    for options in ({}, {"repetition_penalty": 1.4}):
        alone = [new_tokens(ours(model, [prompt], **options), [prompt])[0] for prompt in PROMPTS]
        assert new_tokens(ours(model, PROMPTS, side=side, **options), PROMPTS) == alone


def test_attention_mask_is_found_from_padding_tokens_as_transformers_finds_it(models) -> None:
    """Without an attention mask, padding would be read as text."""
    inputs = padded(PROMPTS)["input_ids"]
    wanted = models["llama"].generate(inputs, max_new_tokens=8, suppress_tokens=[MASK])
    assert torch.equal(generate(inputs, model=models["llama"], max_new_tokens=8, mtp=EXACT), wanted)


def test_without_a_prompt_it_starts_from_bos(models) -> None:
    """As in transformers. A forced BOS applies to the first token after it."""
    wanted = models["llama"].generate(max_new_tokens=8, suppress_tokens=[MASK], forced_bos_token_id=33)
    found = generate(model=models["llama"], max_new_tokens=8, forced_bos_token_id=33, mtp=EXACT, presence_penalty=0.0)
    assert torch.equal(found, wanted) and found[0, :2].tolist() == [1, 33]


def test_a_processor_of_the_users_stands_in_the_place_of_the_options(models) -> None:
    """In transformers, a user's processor replaces an option of the same kind: both at once would penalise twice."""
    options: Options = {
        "repetition_penalty": 1.2,
        "logits_processor": LogitsProcessorList([RepetitionPenaltyLogitsProcessor(1.9, prompt_ignore_length=4)]),
    }
    assert torch.equal(ours(models["llama"], PROMPTS, **options), reference(models["llama"], PROMPTS, **options))


class EndsAt(StoppingCriteria):
    """Ends a row where the sum of its last two ids is divisible by `n`."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __call__(self, input_ids, scores, **kwargs):
        return input_ids[:, -2:].sum(1) % self.n == 0


@pytest.mark.parametrize("family", ["llama", HOLDING])
def test_stopping_criteria_end_each_row_where_it_is_to_end(models, family: str) -> None:
    """A criterion that is called once per chunk ends rows too late. One that is called for all rows together ends them too
    early or never."""
    lengths, chunks = set(), []
    for n in (3, 5, 7):
        options: Options = {"stopping_criteria": StoppingCriteriaList([EndsAt(n)])}
        wanted = reference(models[family], PROMPTS, **options)
        assert torch.equal(ours(models[family], PROMPTS, mtp_chunks=chunks, **options), wanted)
        lengths |= {len(row) for row in new_tokens(wanted, PROMPTS)}
    assert len(lengths) > 1 and "stop" in {chunk.finish for chunk in chunks}


class NotesOnAll(EndsAt):
    """Stores a state for every row of its batch, as lm-evaluation-harness's criterion does, and says whether all are done."""

    def __init__(self, n: int, rows: int) -> None:
        super().__init__(n)
        self.done = [False] * rows

    def __call__(self, input_ids, scores, **kwargs):
        met = super().__call__(input_ids, scores)
        self.done = [done or bool(met[i]) for i, done in enumerate(self.done)]
        return False not in self.done


def test_a_criterion_that_notes_every_row_of_its_batch(models) -> None:
    """It must end each row where the row would end alone. It must not see fewer rows than it counts, nor the state of another
    row."""
    together = ours(models["llama"], PROMPTS, stopping_criteria=StoppingCriteriaList([NotesOnAll(5, len(PROMPTS))]))
    alone = ours(models["llama"], PROMPTS, stopping_criteria=StoppingCriteriaList([EndsAt(5)]))
    assert torch.equal(together, alone)


def test_criteria_of_the_users_for_length_and_eos_are_not_dropped(models) -> None:
    """The engine has its own way to end at a length or EOS. It must not hide a criterion that asks for another length or EOS."""
    model = models[HOLDING]
    plain = reference(model, PROMPTS[:1], eos_token_id=None)[0, 5:].tolist()
    for criterion in (MaxLengthCriteria(12), MaxLengthCriteria(29), EosTokenCriteria([plain[6], plain[8]])):
        options: Options = {"stopping_criteria": StoppingCriteriaList([criterion])}
        wanted = reference(model, PROMPTS[:1], **options)
        assert torch.equal(ours(model, PROMPTS[:1], **options), wanted)
        assert wanted.shape[1] < 29 or isinstance(criterion, MaxLengthCriteria)


def test_max_time_ends_rows_early(models) -> None:
    """When the time is up, a row ends with the one token that it has, as in transformers."""
    chunks = []
    out = ours(models["llama"], PROMPTS, max_time=1e-9, mtp_chunks=chunks)
    assert out.shape[1] == 18 and [chunk.finish for chunk in chunks] == ["stop"] * 3
    assert torch.equal(out, reference(models["llama"], PROMPTS, max_time=1e-9))
    assert torch.equal(ours(models["llama"], PROMPTS, max_time=1e9), reference(models["llama"], PROMPTS))


@pytest.mark.parametrize("first", range(8))
def test_a_stop_string_ends_the_text_wherever_chunks_end(models, first: int) -> None:
    """A stop string may begin in one chunk and end in the next, be inside one chunk, or end in the middle of a token."""
    model, prompt = models[HOLDING], PROMPTS[1]
    static = {"policy": "static", "k": 3, "adaptive": False}  # chunks end at 3, 6, 9, ...
    plain = ours(model, [prompt], mtp=static)[0, 17:].tolist()
    stop = TOKENIZER.decode(plain)[first : first + 3]
    texts = [TOKENIZER.decode(prompt + plain[: i + 1]) for i in range(len(plain))]
    end = next(i for i, text in enumerate(texts) if stop in text[-len(TOKENIZER.decode(plain[i])) - 2 :]) + 1
    found = ours(model, [prompt], mtp=static, stop_strings=stop, tokenizer=TOKENIZER)
    assert found[0, 17:].tolist() == plain[:end] and end < NEW
    stop = TOKENIZER.decode(reference(model, [prompt])[0, 17:])[first : first + 3]
    options: Options = {"stop_strings": ["no such words", stop], "tokenizer": TOKENIZER}
    wanted = reference(model, PROMPTS, **options)
    assert torch.equal(ours(model, PROMPTS, **options), wanted)


def test_stop_strings_of_a_checkpoint_and_of_a_config_are_honoured() -> None:
    """Transformers would look for a tokenizer, which it does not pass on, and raise an error."""
    model = model_of(HOLDING)
    stop = TOKENIZER.decode(reference(model, PROMPTS[:1])[0, 8:10].tolist())
    wanted = reference(model, PROMPTS[:1], stop_strings=stop, tokenizer=TOKENIZER)
    assert wanted.shape[1] < 5 + NEW
    config = GenerationConfig(stop_strings=stop)
    assert torch.equal(ours(model, PROMPTS[:1], generation_config=config, tokenizer=TOKENIZER), wanted)
    assert config.stop_strings == stop, "what was given stays as it was"
    model.generation_config.stop_strings = [stop]
    assert torch.equal(ours(model, PROMPTS[:1], tokenizer=TOKENIZER), wanted)
    with pytest.raises(DecodingError, match=r"stop_strings=.* need the tokenizer"):
        ours(model, PROMPTS[:1])
    assert ours(model, PROMPTS[:1], stop_strings=None).shape[1] > wanted.shape[1]


@pytest.mark.parametrize("family", ["llama", HOLDING])
@pytest.mark.parametrize("options", [{}, {"repetition_penalty": 1.3}, {"do_sample": True, "top_k": 5}], ids=str)
def test_scores_and_logits_are_those_of_transformers(models, family: str, options: Options) -> None:
    """If the scores of a draft's position were returned for another token, they would look just as plausible."""
    model = models[family]
    asked: Options = {"output_scores": True, "output_logits": True, "return_dict_in_generate": True, **options}
    found = ours(model, PROMPTS[:1], **asked)
    if "do_sample" in options:  # transformers draws differently, so it is made to write what was drawn here
        script = found.sequences[0, 5:].tolist()
        asked["prefix_allowed_tokens_fn"] = lambda row, ids: list(range(95))
        wanted = scripted(model, script, options)
    else:
        wanted = reference(model, PROMPTS[:1], **asked)
        assert torch.equal(found.sequences, wanted.sequences)
        wanted = [(s, g) for s, g in zip(wanted.scores, wanted.logits, strict=True)]
    assert len(found.scores) == len(found.logits) == found.sequences.shape[1] - 5 == len(wanted)
    for scores, logits, (wanted_scores, wanted_logits) in zip(found.scores, found.logits, wanted, strict=True):
        wanted_logits[:, MASK] = -torch.inf
        torch.testing.assert_close(logits, wanted_logits, rtol=0, atol=1e-9)
        torch.testing.assert_close(scores, wanted_scores, rtol=0, atol=1e-9)


def scripted(model, script: list[int], options: Options) -> list[tuple]:
    """Transformers' scores and logits along a text, with one call per token."""
    found = []
    for i in range(len(script)):
        out = reference(
            model, [PROMPTS[0] + script[:i]], output_scores=True, output_logits=True, return_dict_in_generate=True,
            **{**options, "max_new_tokens": 1},
        )  # fmt: skip
        found.append((out.scores[0], out.logits[0]))
    return found


def test_what_is_returned_has_the_shape_of_transformers_answer(models) -> None:
    """Rows of different lengths: padding comes at the end, there are scores up to the longest row, and nothing is returned
    that was not asked for."""
    out = ours(models["llama"], PROMPTS, return_dict_in_generate=True, output_scores=True, eos_token_id=list(range(40)))
    wanted = reference(models["llama"], PROMPTS, return_dict_in_generate=True, eos_token_id=list(range(40)))
    assert torch.equal(out.sequences, wanted.sequences)
    assert out.logits is None and out.past_key_values is None
    assert [tuple(scores.shape) for scores in out.scores] == [(3, 96)] * (out.sequences.shape[1] - 17)


@pytest.mark.parametrize(
    "config", [{"repetition_penalty": 1.4}, {"suppress_tokens": [47, MASK]}, {"eos_token_id": [5, 77]}], ids=str
)
def test_the_defaults_of_a_checkpoint_are_honoured(config: Options) -> None:
    """The settings in generation_config.json are part of what greedy decoding means for that checkpoint."""
    model = model_of("llama")
    plain = ours(model, PROMPTS[:1])
    for name, value in config.items():
        setattr(model.generation_config, name, value)
    wanted = reference(model, PROMPTS[:1], **config)
    assert torch.equal(ours(model, PROMPTS[:1]), wanted) and not torch.equal(plain, wanted)
    assert torch.equal(ours(model, PROMPTS[:1], generation_config=GenerationConfig(max_new_tokens=NEW)), wanted)


def test_how_to_decode_comes_from_the_checkpoint_where_the_call_says_nothing() -> None:
    """A checkpoint's calibrated threshold must apply when the call names the same policy, and not when it names another."""
    model, chunks = model_of(HOLDING), []
    model.generation_config.mtp = {"policy": "static", "k": 4, "adaptive": False}
    for mtp, expected in ((None, 4), ({"policy": "static"}, 4), ({"k": 2}, 2), ({"policy": "next-token"}, 1)):
        chunks.clear()
        ours(model, PROMPTS[:1], mtp=mtp, mtp_chunks=chunks, eos_token_id=None)
        assert sizes(chunks) == {expected}
    with pytest.raises(DecodingError, match="static policy needs k"):
        model.generation_config.mtp = {"policy": "exact", "threshold": 0.2}
        ours(model, PROMPTS[:1], mtp={"policy": "static"})


class RaisesAt61(LogitsProcessor):
    """Raises an error if the last token is 61. Only the first of these rows writes that token, but many drafts are 61."""

    def __call__(self, input_ids, scores):
        if int(input_ids[0, -1]) == 61:
            raise RuntimeError("no such grammar")
        return scores


class CriterionRaisesAt61(StoppingCriteria):
    def __call__(self, input_ids, scores, **kwargs):
        return RaisesAt61()(input_ids, torch.zeros(1, dtype=torch.bool))


@pytest.mark.parametrize(
    "options",
    [
        {"logits_processor": LogitsProcessorList([RaisesAt61()])},
        {"stopping_criteria": StoppingCriteriaList([CriterionRaisesAt61()])},
    ],
    ids=["logits_processor", "stopping_criteria"],
)
def test_a_row_whose_processor_or_criterion_raises_is_named_and_harms_no_other(models, options: Options) -> None:
    """An error in a callback must not take away the texts of the other rows. An error at a wrong draft must not count."""
    chunks = []
    with pytest.raises(DecodingError, match=r"row 0: a .* failed: RuntimeError: no such grammar"):
        ours(models["llama"], PROMPTS, mtp_chunks=chunks, **options)
    wanted = new_tokens(reference(models["llama"], PROMPTS), PROMPTS)
    for row in (1, 2):
        assert [token for chunk in chunks if chunk.row == row for token in chunk.token_ids] == wanted[row]


class Remembers(LogitsProcessor):
    """Raises an error for every prefix that is not one of the text, as a grammar would."""

    def __init__(self, text: list[int]) -> None:
        self.text, self.seen = text, set()

    def __call__(self, input_ids, scores):
        ids = input_ids[0].tolist()
        if ids != self.text[: len(ids)]:
            raise RuntimeError(f"never heard of {ids}")
        self.seen.add(len(ids))
        return scores


@pytest.mark.parametrize("family", ["llama", HOLDING])
def test_processors_are_shown_every_prefix_of_the_text_and_may_refuse_all_others(models, family: str) -> None:
    """Rejected drafts are not part of the text. A grammar that does not accept them must not end the row."""
    text = reference(models[family], PROMPTS[:1])[0].tolist()
    processor = Remembers(text)
    found = ours(models[family], PROMPTS[:1], logits_processor=LogitsProcessorList([processor]))
    assert found[0].tolist() == text and processor.seen == set(range(5, len(text)))
