"""Conversations of several turns: every turn of the assistant is found, with the token that ends it."""

import pytest

from multitoken.errors import DataError
from multitoken.training.encoding import Prompt, Sample, encode_record
from multitoken.training.sources import Record, record_from_row

EOS = 1
TURN = "{% for m in messages %}[{{ m['role'] }}]"
REPLY = "{% if add_generation_prompt %}[assistant]{% endif %}"
TOOLS = (
    "{% if tools %}tools:{% for t in tools %}{{ t['function']['name'] }};{% endfor %}{% endif %}"
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}"
    "{% for c in m['tool_calls'] or [] %}<{{ c['function']['name'] }}{{ c['function']['arguments'] | tojson }}>{% endfor %}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}\n{% endif %}{% endfor %}" + REPLY
)


def chat(*contents: str) -> tuple[dict, ...]:
    """Messages that alternate between the user and the assistant."""
    return tuple({"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents))


def turns_of(sample, tokenizer) -> list[str]:
    assert isinstance(sample, Sample)
    return [tokenizer.decode(sample.ids[start:end]) for start, end in sample.turns]


def test_every_turn_is_found_with_its_end(chat_tokenizer):
    """The model does not write the template's line break after a turn, nor the next question."""
    sample = encode_record(Record(messages=chat("a", "bb", "c", "dd")), chat_tokenizer, 99)
    assert turns_of(sample, chat_tokenizer) == ["bb</s>", "dd</s>"]
    assert chat_tokenizer.decode(sample.ids) == "<s>[user]a[assistant]bb</s>\n[user]c[assistant]dd</s>"
    assert chat_tokenizer.decode(sample.prompt_ids) == "<s>[user]a[assistant]"
    assert sample.ended and not sample.last_turn_only


def test_a_greeting_is_context(chat_tokenizer):
    """A first message of the assistant answers nothing: there is no prompt from which it would be decoded."""
    messages = ({"role": "assistant", "content": "hi"}, *chat("a", "bb"))
    assert turns_of(encode_record(Record(messages=messages), chat_tokenizer, 99), chat_tokenizer) == ["bb</s>"]


def test_cut_inside_and_between_turns(chat_tokenizer):
    """A turn that is cut inside has no end token. A turn that is cut away must not leave an empty or negative span."""
    record = Record(messages=chat("a", "bb", "c", "dd"))
    whole = encode_record(record, chat_tokenizer, 99)
    assert isinstance(whole, Sample)
    (_, _), (start, end) = whole.turns
    for length, turns in ((end - 1, ["bb</s>", "dd"]), (start, ["bb</s>"]), (start - 3, ["bb</s>"])):
        sample = encode_record(record, chat_tokenizer, length)
        assert turns_of(sample, chat_tokenizer) == turns
        assert len(sample.ids) == length and not sample.ended


@pytest.mark.parametrize("marked", ["{{ m['content'] }}{{ eos_token }}\n", "{{ m['content'] }}"])
@pytest.mark.parametrize("opening_inside", [False, True])
def test_markers_of_the_template_are_used(make_tokenizer, marked: str, opening_inside: bool):
    """The markers may or may not include the turn's opening and its end, and earlier turns are rendered differently
    here."""
    opening, begin = "[{{ m['role'] }}]", "{% generation %}"
    inside = begin + opening if opening_inside else opening + begin
    end = "" if "eos" in marked else "{{ eos_token }}\n"
    template = "{% for m in messages %}{% if m['role'] == 'assistant' %}{% if not loop.last %}-{% endif %}"
    template += inside + marked + "{% endgeneration %}" + end
    tokenizer = make_tokenizer(
        chat_template=template + "{% else %}[user]{{ m['content'] }}{% endif %}{% endfor %}" + REPLY
    )
    sample = encode_record(Record(messages=chat("a", " bb", "c", "dd")), tokenizer, 99)
    assert turns_of(sample, tokenizer) == [" bb</s>", "dd</s>"]
    assert tokenizer.decode(sample.ids).startswith("[user]a-[assistant] bb</s>")
    assert isinstance(sample, Sample) and not sample.last_turn_only and sample.ids[-1] == EOS


def test_history_that_is_rendered_differently_leaves_the_last_turn(make_tokenizer):
    """Reasoning is removed from earlier turns, so their text in the conversation is not what the model wrote or would
    write."""
    reasoning = "{{ m['content'] if loop.last else m['content'].split('>')[-1] }}{% endfor %}"
    tokenizer = make_tokenizer(chat_template=TURN + reasoning + REPLY)
    sample = encode_record(Record(messages=chat("a", "<t>bb", "c", "<t>dd")), tokenizer, 99)
    assert turns_of(sample, tokenizer) == ["<t>dd</s>"]
    assert tokenizer.decode(sample.prompt_ids) == "[user]a[assistant]bb[user]c[assistant]"
    assert isinstance(sample, Sample) and sample.last_turn_only


def test_calls_of_tools_are_turns_and_their_results_are_context(make_tokenizer):
    """In the OpenAI format, arguments are JSON text. Rendered as they are, they would be quoted twice."""
    tokenizer = make_tokenizer(chat_template=TOOLS)
    function = {"name": "add", "arguments": '{"x": 1}'}
    row = {
        "tools": '[{"type": "function", "function": {"name": "add"}}]',
        "messages": [
            {"role": "user", "content": "1?", "tool_calls": None},
            {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": function}]},
            {"role": "tool", "content": "2"},
            {"role": "assistant", "content": "two"},
        ],
    }
    record = record_from_row(row, "x")
    sample = encode_record(record, tokenizer, 99)
    assert turns_of(sample, tokenizer) == ['<add{"x": 1}></s>', "two</s>"]
    assert tokenizer.decode(sample.prompt_ids) == "tools:add;[user]1?[assistant]"
    asked = encode_record(record_from_row(row | {"messages": row["messages"][:3]}, "x"), tokenizer, 99)
    assert isinstance(asked, Prompt)
    assert tokenizer.decode(asked.prompt_ids).endswith("[tool]2[assistant]")
    again = encode_record(record.without_response(), tokenizer, 99)
    assert again == asked, "rewriting a reply must keep the tools"


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"tools": 3}, "x: 'tools' is a int; expected a list of objects"),
        ({"tools": "[{"}, "x: 'tools' is not valid JSON"),
        ({"messages": [{"role": "assistant", "tool_calls": "add"}]}, "x: messages: message 1 has tool_calls 'add'"),
        ({"messages": [{"role": "assistant", "tool_calls": []}]}, "x: messages: message 1 has content None"),
    ],
)
def test_bad_tools_name_the_record(row: dict, complaint: str):
    """Guards against the template's own error, a Jinja traceback that names no line of the data."""
    with pytest.raises(DataError, match=complaint):
        record_from_row({"messages": list(chat("a"))} | row, "x")
