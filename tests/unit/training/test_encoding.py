"""From records to prompt and response ids: tokenised separately, with EOS where the response ended, and BOS once."""

import pytest

from multitoken.errors import DataError
from multitoken.training.encoding import Prompt, Sample, encode_record, fingerprint
from multitoken.training.sources import Record

BOS, EOS, MASK = 0, 1, 2


def test_prompt_and_response_are_tokenised_apart(make_tokenizer):
    """A merge across the border ('a' + 'b' -> 'ab') would give training ids that never occur when decoding after the
    prompt."""
    tokenizer = make_tokenizer(merges=(("a", "b"),))
    sample = encode_record(Record(prompt="xa", response="bx"), tokenizer, 64)
    assert isinstance(sample, Sample) and sample.ended
    assert tokenizer.convert_ids_to_tokens(list(sample.prompt_ids)) == ["<s>", "x", "a"]
    assert tokenizer.convert_ids_to_tokens(list(sample.response_ids)) == ["b", "x", "</s>"]


def test_template_renders_both_and_its_eos_is_the_only_one(chat_tokenizer):
    """A second EOS, or the template's line break after EOS, would be trained on although no model ever emits it."""
    sample = encode_record(Record(prompt="hi", response="ho"), chat_tokenizer, 64)
    assert isinstance(sample, Sample) and sample.ended
    assert chat_tokenizer.decode(sample.prompt_ids) == "<s>[user]hi[assistant]"
    assert chat_tokenizer.decode(sample.response_ids) == "ho</s>"
    assert sample.prompt_ids.count(BOS) == 1


def test_eos_is_appended_where_the_template_has_none(make_tokenizer):
    """Without EOS, the adapted model would never learn to stop."""
    template = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
    template += "{% if add_generation_prompt %}[assistant]{% endif %}"
    tokenizer = make_tokenizer(chat_template=template)
    sample = encode_record(Record(prompt="hi", response="ho"), tokenizer, 64)
    assert isinstance(sample, Sample)
    assert tokenizer.decode(sample.response_ids) == "ho</s>"


def test_chat_model_with_a_second_end_token(make_tokenizer):
    """Gemma's turns end with a token that is not tokenizer.eos_token. A second, different EOS must not be appended."""
    template = (
        "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% if m['role'] == 'assistant' %}!\n{% endif %}"
    )
    template += "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    tokenizer = make_tokenizer(chat_template=template)
    end_of_turn = tokenizer.convert_tokens_to_ids("!")
    sample = encode_record(Record(prompt="hi", response="ho"), tokenizer, 64, eos_ids=(EOS, end_of_turn))
    assert isinstance(sample, Sample) and sample.ended
    assert tokenizer.decode(sample.response_ids) == "ho!"


def test_an_end_token_that_the_tokenizer_does_not_have_ends_nothing(chat_tokenizer):
    """Generation configs name such ids. Their text is None, and an answer with this word in it would be cut there."""
    record = Record(prompt="hi", response="x = None # ho")
    sample = encode_record(record, chat_tokenizer, 64, eos_ids=(EOS, 5000))
    assert isinstance(sample, Sample)
    assert chat_tokenizer.decode(sample.response_ids) == "x = None # ho</s>"


def test_a_conversation_that_the_user_ends_is_a_prompt(chat_tokenizer):
    """The user's last message waits for a reply. The earlier reply is part of the prompt."""
    chat = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"})
    asked = encode_record(Record(messages=chat), chat_tokenizer, 64)
    assert isinstance(asked, Prompt)
    assert chat_tokenizer.decode(asked.prompt_ids) == "<s>[user]a[assistant]b</s>\n[user]c[assistant]"


def test_template_whose_prompt_is_no_prefix_is_refused(make_tokenizer):
    """Some templates open a reasoning turn only in the prompt (DeepSeek R1). A cut after the prompt's length would be
    wrong."""
    template = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
    tokenizer = make_tokenizer(chat_template=template + "{% if add_generation_prompt %}[assistant]<think>{% endif %}")
    with pytest.raises(DataError, match=r"chats.jsonl, line 3: the chat template renders the prompt differently"):
        encode_record(Record(prompt="hi", response="ho", where="chats.jsonl, line 3"), tokenizer, 64)


@pytest.mark.parametrize(
    ("max_length", "response", "ended"), [(6, "abc</s>", True), (5, "abc", False), (4, "ab", False)]
)
def test_cut_response_has_no_eos(plain_tokenizer, max_length: int, response: str, ended: bool):
    """An EOS after a cut response would teach the model to stop in mid-sentence. EOS itself needs room as well."""
    sample = encode_record(Record(prompt="p", response="abc"), plain_tokenizer, max_length)
    assert isinstance(sample, Sample)
    assert plain_tokenizer.decode(sample.response_ids) == response
    assert sample.ended is ended


def test_prompt_longer_than_max_length_leaves_an_empty_response(plain_tokenizer):
    """Guards against a negative slice, which would silently remove the end of the response instead of all of it."""
    sample = encode_record(Record(prompt="pppppp", response="abcdef"), plain_tokenizer, 5)
    assert isinstance(sample, Sample)
    assert sample.response_ids == () and not sample.ended


def test_text_is_all_response_after_bos(plain_tokenizer, make_tokenizer):
    sample = encode_record(Record(text="abc"), plain_tokenizer, 64)
    body = plain_tokenizer("abc", add_special_tokens=False)["input_ids"]
    assert sample == Sample((BOS, *body, EOS), ((1, 5),), True)
    bare = make_tokenizer(bos=False, eos=False)
    sample = encode_record(Record(text="abc"), bare, 64)
    assert isinstance(sample, Sample)
    assert sample.prompt_ids == () and len(sample.response_ids) == 3
    assert not sample.ended, "a vocabulary without EOS cannot say that the text ended"


@pytest.mark.parametrize(
    "record", [Record(text="a<MTP>"), Record(prompt="<MTP>"), Record(prompt="a", response="<MTP>")]
)
def test_typed_mask_token_is_refused(plain_tokenizer, record: Record):
    """'<MTP>' in the text becomes the real mask id, which would corrupt the block layout."""
    with pytest.raises(DataError, match=r"record: the text holds the mask token '<MTP>' \(id 2\)"):
        encode_record(record, plain_tokenizer, 64, mask_id=MASK)


def test_bad_chat_names_the_record(chat_tokenizer):
    only_answer = Record(messages=({"role": "assistant", "content": "b"},), where="x.jsonl, line 7")
    with pytest.raises(DataError, match=r"x.jsonl, line 7: the only message is the assistant's"):
        encode_record(only_answer, chat_tokenizer, 64)


def test_fingerprint_tells_ids_and_salts_apart():
    """If ids were joined without a separator, [1, 23] and [12, 3] would share a cached response."""
    assert fingerprint([1, 23]) != fingerprint([12, 3])
    assert fingerprint([1], salt="a") != fingerprint([1], salt="b")
    assert fingerprint((1, 2)) == fingerprint([1, 2])
