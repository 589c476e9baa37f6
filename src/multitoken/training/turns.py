"""Find the assistant's turns in a rendered conversation.

A template with `{% generation %}` markers marks them itself. For any other template, the conversation is rendered up to
each of the assistant's turns, once without the turn and once with it. The turn is what the second text adds to the first,
provided that the whole text starts with both. This fails for templates that render history differently once a later turn
follows (those that strip reasoning from earlier turns). There, only the last turn can be trained on as it would be decoded.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from transformers.utils.chat_template_utils import render_jinja_template

from multitoken.errors import UsageError
from multitoken.models.prompts import Message, Tool, render_chat

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MARKER = re.compile(r"\{%-?\s*generation\s*-?%\}")
Span = tuple[int, int]
"""[start, end)."""


@dataclass(frozen=True)
class RenderedChat:
    """The template's text and the assistant's turns in it, in order. There is at least one, and the last one is the last
    message. `last_turn_only`: there are others, but they cannot be told from the text around them."""

    text: str
    turns: tuple[Span, ...]
    last_turn_only: bool = False


def render_turns(
    messages: Sequence[Message], tokenizer: "PreTrainedTokenizerBase", tools: Sequence[Tool] | None = None
) -> RenderedChat:
    """Render a conversation that ends with the assistant's message.

    Raises `UsageError` where not even the last turn can be told from its prompt.
    """
    whole = render_chat(messages, tokenizer, tools=tools, for_reply=False)
    if marked := _marked_turns(whole, messages, tokenizer, tools):
        return RenderedChat(whole, marked)
    prompt = render_chat(messages[:-1], tokenizer, tools=tools, for_reply=True)
    if not whole.startswith(prompt):
        raise UsageError(
            "the chat template renders the prompt differently once it is answered, so the response "
            f"cannot be told from it (the prompt alone ends in {prompt[-40:]!r}): "
            "leave the responses out and let the model write them (rewrite_responses)"
        )
    last = (len(prompt), len(whole))
    # If the assistant opens the conversation, its first turn has no prompt.
    earlier = [n for n in range(1, len(messages) - 1) if messages[n]["role"] == "assistant"]
    turns = [_turn(whole, messages[: n + 1], tokenizer, tools) for n in earlier]
    found = [turn for turn in turns if turn is not None]
    if len(found) < len(turns):
        return RenderedChat(whole, (last,), last_turn_only=True)
    return RenderedChat(whole, (*found, last))


def _turn(
    whole: str, messages: Sequence[Message], tokenizer: "PreTrainedTokenizerBase", tools: Sequence[Tool] | None
) -> Span | None:
    """The span of the last of `messages` in the text of the whole conversation, which `messages` begin."""
    try:
        prompt = render_chat(messages[:-1], tokenizer, tools=tools, for_reply=True)
        answered = render_chat(messages, tokenizer, tools=tools, for_reply=False)
    except UsageError:  # a template may refuse a part of a conversation that it renders as a whole
        return None
    if whole.startswith(answered) and answered.startswith(prompt):
        return len(prompt), len(answered)
    return None


def _marked_turns(
    whole: str, messages: Sequence[Message], tokenizer: "PreTrainedTokenizerBase", tools: Sequence[Tool] | None
) -> tuple[Span, ...] | None:
    """The turns between the template's own markers, as spans in the text.

    `apply_chat_template(..., return_assistant_tokens_mask=True)` makes a mask over tokens from the same spans. That mask is
    lost where a token's offsets leave out its leading space, and a token across a boundary would be on neither side.
    """
    template = tokenizer.get_chat_template(tools=list(tools) if tools else None)
    if not _MARKER.search(template):
        return None
    special: dict[str, Any] = tokenizer.special_tokens_map
    render: Any = render_jinja_template  # its own annotations are wrong
    rendered, spans = render(
        conversations=[list(messages)],
        tools=list(tools) if tools else None,
        chat_template=template,
        return_assistant_tokens_mask=True,
        **special,
    )
    if rendered[0] != whole:
        return None
    # Some markers include the turn's opening, which decoding is given and does not write.
    bare = render_chat(messages[:-1], tokenizer, tools=tools, for_reply=False)
    opening = render_chat(messages[:-1], tokenizer, tools=tools, for_reply=True).removeprefix(bare)
    turns = [(start + len(opening) * whole.startswith(opening, start, end), end) for start, end in spans[0]]
    return tuple((start, end) for start, end in turns if start < end) or None
