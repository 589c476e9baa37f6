"""From records to train and validation samples: missing responses are written, and everything is counted."""

import random

import pytest

from multitoken.config import AdaptConfig, make_config
from multitoken.errors import DataError
from multitoken.training.dataset import PreparedData, prepare_samples
from multitoken.training.responses import Written
from multitoken.training.sources import Record

EOS, MASK = 1, 2


def config(**options: object) -> AdaptConfig:
    return make_config({"model": "m", "data": "d", "output": "o", "max_length": 16, "validation_share": 0}, **options)


def never(_: list[list[int]]) -> list[Written]:
    raise AssertionError("nothing is missing")


def prepare(records: list[Record], tokenizer, write=never, **options: object) -> PreparedData:
    return prepare_samples(iter(records), tokenizer, MASK, config(**options), write)


def test_missing_responses_are_written_and_the_order_kept(plain_tokenizer):
    """Each written response must follow its own prompt, and stay in order with the records that needed none."""
    asked: list[list[int]] = []

    def write(prompts: list[list[int]]) -> list[Written]:
        asked.extend(prompts)
        return [([ids[-1], ids[-1], EOS], True) for ids in prompts]

    records = [Record(prompt="a"), Record(prompt="b", response="xy"), Record(prompt="c")]
    data = prepare(records, plain_tokenizer, write)
    assert [plain_tokenizer.decode(ids) for ids in asked] == ["<s>a", "<s>c"]
    whole = [plain_tokenizer.decode(s.prompt_ids + s.response_ids) for s in data.train]
    assert whole == ["<s>aaa</s>", "<s>bxy</s>", "<s>ccc</s>"]
    assert all(sample.ended for sample in data.train)
    assert data.written == 2


def test_rewrite_has_every_response_written(plain_tokenizer):
    data = prepare(
        [Record(prompt="b", response="xy")], plain_tokenizer, lambda _: [([7, 7, 7], False)], rewrite_responses=True
    )
    assert data.train[0].response_ids == (7, 7, 7) and not data.train[0].ended
    assert (data.report.written, data.report.unfinished) == (1, 1)
    with pytest.raises(DataError, match="rewriting responses needs prompts"):
        prepare([Record(text="abc")], plain_tokenizer, rewrite_responses=True)


def test_bad_record_is_found_before_anything_is_written(plain_tokenizer):
    """Guards against an error about the last row after the teacher has written responses for hours."""
    records = [Record(prompt="a"), Record(prompt="<MTP>", where="x.jsonl, line 2")]
    with pytest.raises(DataError, match=r"x\.jsonl, line 2"):
        prepare(records, plain_tokenizer)


def test_written_response_is_cut_at_max_length(plain_tokenizer):
    """A response whose EOS is cut off no longer counts as ended."""
    data = prepare([Record(prompt="abc")], plain_tokenizer, lambda _: [([9] * 12 + [EOS], True)])
    assert len(data.train[0].prompt_ids + data.train[0].response_ids) == 16
    assert not data.train[0].ended and data.report.cut == 1 and data.report.unfinished == 0


def test_everything_that_is_dropped_is_counted(plain_tokenizer):
    """Guards against silently dropped rows: the run would seem to train on data that it never sees."""
    records = [
        Record(prompt="a", response="xyz"),
        Record(prompt="a" * 14, response="xyz"),  # 15 with BOS: no room for two tokens
        Record(prompt="a" * 40),
        Record(prompt="b"),  # answered with EOS alone
        Record(prompt="c", response="z" * 40),
    ]
    data = prepare(records, plain_tokenizer, lambda prompts: [([EOS], True) for _ in prompts])
    report = data.report
    assert (report.records, report.written, report.no_room, report.too_short, report.cut) == (5, 1, 2, 1, 1)
    assert len(data.train) == 2
    assert str(report).startswith(
        "5 records, 1 responses written by the original model, 1 cut at max_length, 1 dropped"
    )


def test_conversations_whose_earlier_turns_are_lost_are_counted(make_tokenizer):
    """A data set of which two thirds of the turns are silently left out would look like one that is trained on as a
    whole."""
    template = (
        "{% for m in messages %}[{{ m['role'][0] }}]{% if m['role'] != 'assistant' or loop.last %}{{ m['content'] }}"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}[a]{% endif %}"
    )
    user, assistant = {"role": "user", "content": "q"}, {"role": "assistant", "content": "xy"}
    records = [Record(messages=(user, assistant)), Record(messages=(user, assistant, user, assistant))]
    data = prepare(records, make_tokenizer(chat_template=template), max_length=64)
    assert data.report.last_turn_only == 1 and "1 trained on in their last turn only" in str(data.report)


def test_train_on_all_counts_prompt_tokens(plain_tokenizer):
    """A one-token answer after a long question is enough if the question is trained on as well."""
    records = [Record(prompt="abc", response="x"), Record(prompt="abc")]

    def ends(prompts: list[list[int]]) -> list[Written]:
        return [([EOS], True) for _ in prompts]

    assert len(prepare(records, plain_tokenizer, ends).train) == 1
    assert len(prepare(records, plain_tokenizer, ends, train_on="all").train) == 2


def test_nothing_left_is_an_error_with_the_counts(plain_tokenizer):
    with pytest.raises(
        DataError, match=r"nothing is left to train on in d: 1 records, 1 dropped with a prompt that fills"
    ):
        prepare([Record(prompt="a" * 40, response="b")], plain_tokenizer)
    with pytest.raises(DataError, match="nothing is left to train on in d: 0 records"):
        prepare([], plain_tokenizer)


def test_split_is_by_prompt_and_not_by_order(plain_tokenizer):
    """A prompt in both lists would leak validation data. A split by position would change when a file is shuffled."""
    records = [Record(prompt=f"p{i % 50}", response=f"r{i}") for i in range(150)]
    data = prepare(records, plain_tokenizer, validation_share=0.2)
    prompts = [{sample.prompt_ids for sample in part} for part in (data.train, data.validation)]
    assert (len(prompts[0]), len(prompts[1])) == (40, 10)
    assert not prompts[0] & prompts[1]
    assert len(data.train) + len(data.validation) == 150
    random.Random(0).shuffle(records)
    assert set(prepare(records, plain_tokenizer, validation_share=0.2).validation) == set(data.validation)


def test_texts_are_split_by_what_they_say(plain_tokenizer):
    """All plain texts have the same prompt, 'BOS'. Split by their prompt, they would all be in the same list."""
    data = prepare([Record(text=f"text {i}") for i in range(20)], plain_tokenizer, validation_share=0.25)
    assert (len(data.train), len(data.validation)) == (15, 5)


@pytest.mark.parametrize(
    ("prompts", "share", "said"),
    [
        (1, 0.05, ["the data holds only one prompt", "fewer than 100 samples (found 1)"]),
        (1, 0.0, ["fewer than 100 samples (found 1)"]),
        (99, 0.05, ["fewer than 100 samples (found 99)"]),
        (100, 0.05, []),
    ],
)
def test_too_little_data_is_named(plain_tokenizer, prompts: int, share: float, said: list[str]):
    """A run on one row would take its ten minutes and end without a word about what it is good for."""
    data = prepare(
        [Record(prompt=str(i), response="xyz") for i in range(prompts)], plain_tokenizer, validation_share=share
    )
    found = data.warnings(share)
    assert len(found) == len(said) and all(map(str.startswith, found, said))


@pytest.mark.parametrize(("prompts", "share", "validation"), [(1, 0.5, 0), (2, 0.9, 1), (10, 0.01, 1), (10, 0.0, 0)])
def test_small_data_keeps_something_on_either_side(plain_tokenizer, prompts: int, share: float, validation: int):
    """Rounding must leave neither the training data nor requested validation data empty."""
    records = [Record(prompt=str(i), response="xyz") for i in range(prompts)]
    data = prepare(records, plain_tokenizer, validation_share=share)
    assert (len(data.train), len(data.validation)) == (prompts - validation, validation)
