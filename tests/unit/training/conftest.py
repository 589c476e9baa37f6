"""Tiny tokenizers with one token per byte, so that tests can read ids as text."""

from collections.abc import Callable

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

CHAT = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
MakeTokenizer = Callable[..., PreTrainedTokenizerFast]


def make_byte_tokenizer(
    *, chat_template: str | None = None, bos: bool = True, eos: bool = True, merges: tuple[tuple[str, str], ...] = ()
) -> PreTrainedTokenizerFast:
    """The vocabulary is <s>, </s> and <MTP> (ids 0, 1, 2), then the bytes, then the merges."""
    letters = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(a + b for a, b in merges)]
    words = ["<s>", "</s>", "<MTP>", *letters]
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    # Also puts </s> after every text, as some tokenizers do. Our code must not let it end a prompt.
    single = " ".join(["<s>"] * bos + ["$A"] + ["</s>"] * eos)
    special = [(word, i) for word, i in (("<s>", 0), ("</s>", 1)) if word in single]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=special)
    names = {name: word for name, word, there in (("bos_token", "<s>", bos), ("eos_token", "</s>", eos)) if there}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, extra_special_tokens=["<MTP>"], **names)
    fast.chat_template = chat_template
    return fast


@pytest.fixture
def make_tokenizer() -> MakeTokenizer:
    return make_byte_tokenizer


@pytest.fixture
def plain_tokenizer() -> PreTrainedTokenizerFast:
    return make_byte_tokenizer()


@pytest.fixture
def chat_tokenizer() -> PreTrainedTokenizerFast:
    return make_byte_tokenizer(chat_template=CHAT)
