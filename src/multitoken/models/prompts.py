"""Turn a prompt or a chat into token ids, the same way for training and inference.

A rendered chat template holds its own BOS and is tokenised without adding special tokens, as transformers does. Plain text gets
the tokens that the tokenizer puts before a text (BOS or nothing), once, and never those that it may put after a text.
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

    A string is one user message if the tokenizer has a chat template (`chat=False`: it is plain text anyway). A list is a chat of
    `{"role": ..., "content": ...}` and always needs the template, which also gets the tools and the keywords in `template` (such
    as enable_thinking). If the last message is the assistant's, the answer continues it. A list of token ids is used as it is.
    Raises `UsageError` for an invalid prompt, `ModelError` if a template is needed and there is none.
    """
    if is_token_ids(prompt):
        if chat or tools or template:
            raise UsageError(
                "a prompt of token ids is already rendered: leave chat, tools and chat_template_kwargs out"
            )
        return list(prompt)  # pyright: ignore[reportReturnType]
    if (chat is False or tokenizer.chat_template is None) and (tools or template):
        raise UsageError("tools and chat_template_kwargs need a chat template, but this prompt is plain text")
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
    """Whether it is a prompt of token ids, not a text or a chat."""
    return isinstance(prompt, list | tuple) and bool(prompt) and all(type(token) is int for token in prompt)


def user_message(content: str) -> Message:
    return {"role": "user", "content": content}


def check_messages(messages: object) -> tuple[Message, ...]:
    """The messages, unchanged. Raises `UsageError` unless each has a role and a text, or tool calls instead of a text."""
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
    """The chat as text, rendered by the chat template. If `for_reply`, the text ends with the opening of the assistant's turn,
    or, if the last message is the assistant's, with that message left open. template: further keywords for the template.

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
    """The ids of the text alone, without special tokens that are not written in it."""
    # verbose=False: the callers cut or refuse a text that is too long for the model, with their own messages.
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def tokenize_text(text: str, tokenizer: "PreTrainedTokenizerBase") -> tuple[list[int], list[int]]:
    """The ids of a plain text: (those that the tokenizer puts before every text, BOS or nothing; those of the text itself)."""
    leading, body = _leading_ids(tokenizer), tokenize(text, tokenizer)
    if leading and body[: len(leading)] == leading:  # the text contains BOS as well
        body = body[len(leading) :]
    return leading, body


def tokenize_continuation(text: str, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """The ids of a text that continues another one.

    SentencePiece-like tokenizers add a space before every text. In the middle of a sequence, that space is not part of the text.
    So the text is tokenised after a line break, whose ids are then removed. If the line break merges with the text (byte-level
    BPE, which adds no space), the text is tokenised alone.
    """
    line_break, joined = tokenize("\n", tokenizer), tokenize("\n" + text, tokenizer)
    if joined[: len(line_break)] == line_break:
        return joined[len(line_break) :]
    return tokenize(text, tokenizer)


def _leading_ids(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    # Found by a trial: bos_token_id alone does not tell whether this tokenizer adds it.
    body, whole = tokenize("a", tokenizer), tokenizer("a")["input_ids"]
    starts = (i for i in range(len(whole) - len(body) + 1) if whole[i : i + len(body)] == body)
    return whole[: next(starts, 0)]


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def eos_ids(hf: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """The ids that end a response: those of the generation config (instruction models often have several) and that of the
    tokenizer."""
    ids: set[int] = set()
    sources: tuple[Any, ...] = (getattr(hf.generation_config, "eos_token_id", None), tokenizer.eos_token_id)
    for source in sources:
        if isinstance(source, int):
            ids.add(source)
        elif source is not None:
            ids |= set(source)
    return sorted(ids)


def is_many(prompt: object) -> bool:
    """Whether it is a list of prompts, not a single chat or a single prompt of token ids."""
    one_chat = isinstance(prompt, list | tuple) and bool(prompt) and all(isinstance(m, dict) for m in prompt)
    return isinstance(prompt, list | tuple) and not one_chat and not is_token_ids(prompt)
