"""A prompt or a chat -> token ids, the same for training and inference.

A rendered chat template holds its own BOS and is tokenised without special tokens, as transformers does. Plain text
gets what the tokenizer puts before a text (BOS or nothing), once, and never what it may put after one.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jinja2

from multitoken.errors import ModelError, UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Message = dict[str, Any]
Tool = dict[str, Any]


def encode_prompt(
    prompt: str | list[Message] | list[int],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    chat: bool | None = None,
    tools: Sequence[Tool] | None = None,
    template: Mapping[str, Any] | None = None,
) -> list[int]:
    """The ids a model should continue.

    A string is one user message if the tokenizer has a chat template (`chat=False`: plain text all the same); a list
    is a chat of `{"role": ..., "content": ...}` and always needs the template, which is given the tools and the keywords in
    `template` (such as enable_thinking) as well. Where the last message is the assistant's, the answer goes on with it. A list of
    token ids is taken as it is.
    Raises `UsageError` for a prompt that cannot be, `ModelError` where a template is needed and there is none.
    """
    if is_token_ids(prompt):
        if chat or tools or template:
            raise UsageError(
                "a prompt of token ids is rendered already: leave chat, tools and chat_template_kwargs out"
            )
        return list(prompt)  # pyright: ignore[reportReturnType]
    if (chat is False or tokenizer.chat_template is None) and (tools or template):
        raise UsageError("tools and chat_template_kwargs are for a chat template, and this prompt is plain text")
    if isinstance(prompt, str):
        if chat or (chat is None and tokenizer.chat_template is not None):
            messages = (user_message(prompt),)
        else:
            leading, body = tokenize_text(prompt, tokenizer)
            if not leading + body:
                raise UsageError("the prompt is empty and the tokenizer has no BOS token to start from: write a prompt")
            return leading + body
    else:
        if chat is False:
            raise UsageError("chat=False takes a string: a list of messages is rendered with the chat template")
        messages = check_messages(prompt)
    return tokenize(render_chat(messages, tokenizer, tools=tools, for_reply=True, template=template), tokenizer)


def is_token_ids(prompt: object) -> bool:
    """Whether it is a prompt of token ids, and no text or chat."""
    return isinstance(prompt, list | tuple) and bool(prompt) and all(type(token) is int for token in prompt)


def user_message(content: str) -> Message:
    return {"role": "user", "content": content}


def check_messages(messages: object) -> tuple[Message, ...]:
    """The messages as they are. Raises `UsageError` unless each has a role and a text, or calls of tools instead."""
    if not isinstance(messages, list | tuple) or not messages:
        raise UsageError(f"found {_short(messages)}; expected a list of messages, each with 'role' and 'content'")
    for number, message in enumerate(messages, 1):
        if not isinstance(message, dict):
            raise UsageError(f"message {number} is {_short(message)}; expected a mapping with 'role' and 'content'")
        calls = message.get("tool_calls")
        if calls is not None and not (
            isinstance(calls, list | tuple) and all(isinstance(call, dict) for call in calls)
        ):
            raise UsageError(f"message {number} has tool_calls {_short(calls)}; expected a list of mappings")
        for key in ("role", "content"):
            may_lack = key == "content" and calls and message.get(key) is None
            if not isinstance(message.get(key), str) and not may_lack:
                raise UsageError(f"message {number} has {key} {_short(message.get(key))}; expected a string")
    return tuple(messages)


def render_chat(
    messages: Sequence[Message],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    for_reply: bool,
    tools: Sequence[Tool] | None = None,
    template: Mapping[str, Any] | None = None,
) -> str:
    """The chat template's text; if `for_reply`, with the opening of the assistant's turn at its end, or its last message still open
    where that is the assistant's. template: further keywords of the template.

    Raises `ModelError` without a template and `UsageError` with the template's own complaint (such as roles that do
    not alternate).
    """
    if tokenizer.chat_template is None:
        raise ModelError("the tokenizer has no chat template, which chat messages need: give the prompt as plain text")
    goes_on = for_reply and messages[-1]["role"] == "assistant"
    try:
        rendered = tokenizer.apply_chat_template(
            list(messages),
            tools=list(tools) if tools else None,  # pyright: ignore[reportArgumentType]
            tokenize=False,
            add_generation_prompt=for_reply and not goes_on,
            continue_final_message=goes_on,
            **(template or {}),
        )
    except (jinja2.TemplateError, ValueError, TypeError) as error:
        raise UsageError(f"the model's chat template refuses these messages: {error}") from error
    assert isinstance(rendered, str)
    return rendered


def tokenize(text: str, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """The ids of the text alone, with no special token that is not written in it."""
    # verbose=False: a text longer than the model is cut or refused by our callers, in their own words.
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def tokenize_text(text: str, tokenizer: "PreTrainedTokenizerBase") -> tuple[list[int], list[int]]:
    """A plain text as (what the tokenizer puts before every text: BOS or nothing, the text itself)."""
    leading, body = _leading_ids(tokenizer), tokenize(text, tokenizer)
    if leading and body[: len(leading)] == leading:  # BOS was typed as well
        body = body[len(leading) :]
    return leading, body


def tokenize_continuation(text: str, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """The ids of a text that continues another one.

    SentencePiece-like tokenizers write a space before whatever they are given; in mid-sequence that is a space which
    nobody wrote. So the text is tokenised behind a line break, whose ids are taken off again. Where the line break
    merges with the text (byte-level BPE, which adds no space), the text is tokenised alone.
    """
    line_break, joined = tokenize("\n", tokenizer), tokenize("\n" + text, tokenizer)
    if joined[: len(line_break)] == line_break:
        return joined[len(line_break) :]
    return tokenize(text, tokenizer)


def _leading_ids(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    # Found by looking: bos_token_id alone does not tell whether this tokenizer puts it there.
    body, whole = tokenize("a", tokenizer), tokenizer("a")["input_ids"]
    starts = (i for i in range(len(whole) - len(body) + 1) if whole[i : i + len(body)] == body)
    return whole[: next(starts, 0)]


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def eos_ids(hf: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """The ids that end a response: the generation config's, which instruction models often have several of, and the
    tokenizer's."""
    ids: set[int] = set()
    sources: tuple[Any, ...] = (getattr(hf.generation_config, "eos_token_id", None), tokenizer.eos_token_id)
    for source in sources:
        if isinstance(source, int):
            ids.add(source)
        elif source is not None:
            ids |= set(source)
    return sorted(ids)


def is_many(prompt: object) -> bool:
    """A list of prompts, and not one chat or one prompt of token ids."""
    one_chat = isinstance(prompt, list | tuple) and bool(prompt) and all(isinstance(m, dict) for m in prompt)
    return isinstance(prompt, list | tuple) and not one_chat and not is_token_ids(prompt)
