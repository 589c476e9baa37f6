"""Prompts become the ids that transformers itself would feed, with BOS once and no EOS after them."""

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from multitoken.errors import ModelError, UsageError
from multitoken.models.prompts import encode_prompt, tokenize, tokenize_continuation

CHAT = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    "[{{ m['role'] }}]{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
BOS, EOS = 0, 1


def byte_tokenizer(single: str = "<s> $A </s>", chat_template: str | None = None) -> PreTrainedTokenizerFast:
    words = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [(word, i) for word, i in (("<s>", BOS), ("</s>", EOS)) if word in single]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=special)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    fast.chat_template = chat_template
    return fast


def space_prefixing_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer like Llama 2's, which puts a space before every text."""
    words = ["<unk>", "▁", "\n", *"abcdefgh"]
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, [], unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def test_plain_prompt_has_bos_and_no_eos():
    """A tokenizer that ends every text with EOS would make the model continue a finished document."""
    tokenizer = byte_tokenizer()
    ids = encode_prompt("hi", tokenizer)
    assert ids[0] == BOS and EOS not in ids
    assert tokenizer.decode(ids[1:]) == "hi"


def test_no_bos_where_the_tokenizer_adds_none():
    """`bos_token` may be set without being put before texts (Qwen). A check of the name alone would add it."""
    tokenizer = byte_tokenizer(single="$A")
    assert encode_prompt("hi", tokenizer) == tokenize("hi", tokenizer)


def test_typed_bos_is_not_doubled():
    """Prompts copied from a rendered template begin with BOS. A second BOS changes the output of many models."""
    tokenizer = byte_tokenizer()
    assert encode_prompt("<s>hi", tokenizer) == encode_prompt("hi", tokenizer)


def test_typed_eos_stays():
    """Only the EOS that the tokenizer adds is left out; one that the user wrote separates documents."""
    assert encode_prompt("hi</s>", byte_tokenizer())[-1] == EOS


def test_string_is_one_user_message_with_a_template():
    """The ids are those of transformers' apply_chat_template, so a chat model sees the format that it knows."""
    tokenizer = byte_tokenizer(chat_template=CHAT)
    ids = encode_prompt("hi", tokenizer)
    assert tokenizer.decode(ids) == "<s>[user]hi[assistant]"
    messages = [{"role": "user", "content": "hi"}]
    assert ids == tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert ids == encode_prompt(messages, tokenizer)
    assert ids.count(BOS) == 1


def test_chat_false_feeds_the_bare_text():
    tokenizer = byte_tokenizer(chat_template=CHAT)
    assert tokenizer.decode(encode_prompt("hi", tokenizer, chat=False)) == "<s>hi"


def test_messages_need_a_template():
    """Without a template there is no right way to join messages. A guess would feed the model a format that it does not
    know."""
    with pytest.raises(ModelError, match="no chat template"):
        encode_prompt([{"role": "user", "content": "hi"}], byte_tokenizer())
    with pytest.raises(ModelError, match="no chat template"):
        encode_prompt("hi", byte_tokenizer(), chat=True)


@pytest.mark.parametrize(
    ("messages", "complaint"),
    [
        ([], "expected a list of messages"),
        (["hi"], "message 1 is 'hi'"),
        ([{"role": "user"}], "message 1 has content None"),
        ([{"role": "user", "content": "a"}, {"role": 3, "content": "b"}], "message 2 has role 3"),
        ([{"role": "user", "content": [{"type": "image"}]}], "message 1 has content"),
        ([{"role": "tool", "content": "a"}], "no tools"),
    ],
)
def test_messages_that_cannot_be(messages: list, complaint: str):
    """Each of these would otherwise end in a KeyError, a Jinja traceback or a prompt with 'None' in it."""
    with pytest.raises(UsageError, match=complaint):
        encode_prompt(messages, byte_tokenizer(chat_template=CHAT))


def test_the_assistant_s_message_goes_on():
    """A last message of the assistant is a prefill: its turn must stay open, and no second one may begin."""
    tokenizer = byte_tokenizer(chat_template=CHAT)
    ids = encode_prompt([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], tokenizer)
    assert tokenizer.decode(ids) == "<s>[user]a[assistant]b"


def test_keywords_reach_the_template():
    """One of them is enable_thinking, which decides what a reasoning model does."""
    tokenizer = byte_tokenizer(
        chat_template=CHAT + "{% if enable_thinking is defined %}({{ enable_thinking }}){% endif %}"
    )
    ids = encode_prompt("hi", tokenizer, template={"enable_thinking": False})
    assert tokenizer.decode(ids) == "<s>[user]hi[assistant](False)"
    with pytest.raises(UsageError, match="plain text"):
        encode_prompt("hi", tokenizer, chat=False, template={"enable_thinking": False})


def test_token_ids_are_taken_as_they_are():
    """A prompt that the user has already rendered must not be rendered again."""
    tokenizer = byte_tokenizer(chat_template=CHAT)
    assert encode_prompt([5, 6, 7], tokenizer) == [5, 6, 7]
    with pytest.raises(UsageError, match="already rendered"):
        encode_prompt([5, 6, 7], tokenizer, chat=True)


def test_contradiction_is_refused():
    with pytest.raises(UsageError, match="chat=False takes a string"):
        encode_prompt([{"role": "user", "content": "a"}], byte_tokenizer(chat_template=CHAT), chat=False)


def test_empty_prompt_starts_from_bos_or_is_refused():
    """A model cannot continue an empty sequence."""
    assert encode_prompt("", byte_tokenizer()) == [BOS]
    with pytest.raises(UsageError, match="prompt is empty"):
        encode_prompt("", byte_tokenizer(single="$A"))


def test_continuation_gets_no_space_of_its_own():
    """A response tokenised like a separate text would teach the model two spaces, or a space inside a word."""
    tokenizer = space_prefixing_tokenizer()
    assert tokenizer.convert_ids_to_tokens(tokenize("ab", tokenizer)) == ["▁", "a", "b"]
    assert tokenizer.convert_ids_to_tokens(tokenize_continuation("ab", tokenizer)) == ["a", "b"]
    assert tokenizer.convert_ids_to_tokens(tokenize_continuation(" ab", tokenizer)) == ["▁", "a", "b"]


def test_continuation_equals_the_text_where_no_space_is_added():
    """Byte-level tokenizers need no care: tokenising with a line break in front must not change their result."""
    tokenizer = byte_tokenizer()
    for text in ("ab", " ab", "\nab", ""):
        assert tokenize_continuation(text, tokenizer) == tokenize(text, tokenizer)
