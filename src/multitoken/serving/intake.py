"""Turns an API body into checked rows for the engine. All errors in a request are found here, before any decoding."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import LogitsProcessorList, RepetitionPenaltyLogitsProcessor

from multitoken.decoding.penalties import PresenceFrequencyPenalty
from multitoken.decoding.policies import Policy, varied, with_trained_k
from multitoken.decoding.row import Request
from multitoken.decoding.sampling import BLIND
from multitoken.errors import MultitokenError
from multitoken.models.model import Model
from multitoken.models.prompts import encode_prompt

from .errors import ApiError, refused
from .options import ServeOptions
from .protocol import ChatBody, CompletionBody, GenerationBody

_ANY_PROMPT = (RepetitionPenaltyLogitsProcessor, *BLIND)  # one object serves every prompt
_KINDS = 64  # combinations of options that are cached


@dataclass(frozen=True)
class Intake:
    """A prepared body: `rows` for the engine, n for each prompt, in the order of the choices in the answer."""

    rows: list[Request]
    prompt_tokens: int


class Preparer:
    """Prepares requests for one model, one at a time."""

    def __init__(self, model: Model, options: ServeOptions) -> None:
        self._model = model
        self._options = options
        self.default = options.policy or model.default_policy
        with_trained_k(
            self.default, model.decoder.trained_k
        )  # a k that is too large is an error now, not in every request
        self._known: dict[Any, Request] = {}

    def rows_of(self, body: GenerationBody) -> int:
        """How many rows a body asks for. Raises `ApiError` if the server can never hold that many."""
        prompts = body.prompts if isinstance(body, CompletionBody) else [body]
        if not prompts or [] in prompts:
            raise refused("prompt is empty; give at least one token", "prompt")
        rows = len(prompts) * (body.n or 1)
        if rows > self._options.most:
            raise refused(f"the request asks for {rows} answers; this server accepts at most {self._options.most}", "n")
        return rows

    def prepare(self, body: GenerationBody) -> Intake:
        """The rows for a body. Raises `ApiError` if the request cannot be decoded."""
        if body.model != self._options.name:
            raise ApiError(
                404,
                f"there is no model {body.model!r}; this server serves {self._options.name!r}",
                param="model",
                code="model_not_found",
            )
        if any(not stop for stop in body.stops):
            raise refused("stop contains an empty string; leave it out", "stop")
        if body.stream_options is not None and not body.stream:
            raise refused("stream_options needs stream: true", "stream_options")
        try:
            asked = body.mtp
            policy = varied(self.default, asked.policy, threshold=asked.threshold, k=asked.k, branches=asked.branches)
            prompts = self._encode(body)
            return Intake(
                [
                    self._row(body, ids, policy, i * (body.n or 1) + j)
                    for i, ids in enumerate(prompts)
                    for j in range(body.n or 1)
                ],
                sum(map(len, prompts)),
            )
        except MultitokenError as error:
            raise refused(str(error)) from error

    def _encode(self, body: GenerationBody) -> list[list[int]]:
        tokenizer = self._model.tokenizer
        if isinstance(body, CompletionBody):
            return [
                encode_prompt(prompt, tokenizer, chat=False) if isinstance(prompt, str) else list(prompt)
                for prompt in body.prompts
            ]
        assert isinstance(body, ChatBody)
        tools = body.tools if body.tool_choice != "none" else None
        if tools and "tools" not in str(tokenizer.chat_template or ""):
            raise refused("this model's chat template does not support tools; leave them out", "tools")
        return [encode_prompt([m.for_template() for m in body.messages], tokenizer, tools=tools)]

    def _row(self, body: GenerationBody, ids: list[int], policy: Policy, row: int) -> Request:
        decoder = self._model.decoder
        new = self._new_tokens(body, len(ids))
        like = self._like(body, ids, policy, new)
        processors = LogitsProcessorList(like.processors)
        if body.presence_penalty or body.frequency_penalty:
            penalty = PresenceFrequencyPenalty(body.presence_penalty or 0, body.frequency_penalty or 0, len(ids))
            processors.insert(0, penalty)
        seed = None
        if like.seed is not None:
            seed = body.seed if body.seed is not None else int(torch.randint(2**63 - 1, ()))
        request = decoder.request(
            ids, policy=policy, max_new_tokens=new, row=row, processors=processors, eos_ids=like.eos_ids, seed=seed
        )
        return replace(request, keep_scores=body.top is not None, adaptive=body.mtp.adaptive)

    def _new_tokens(self, body: GenerationBody, prompt: int) -> int:
        most, asked = self._options.max_tokens, body.max_tokens
        if isinstance(body, ChatBody) and asked is None:
            asked = body.max_completion_tokens
        if asked is not None and asked > most:
            raise refused(f"max_tokens is {asked}; this server allows at most {most}", "max_tokens")
        positions = self._model.decoder.max_positions
        room = most if positions is None else positions - prompt
        if room < (asked or 1):
            raise refused(
                f"the prompt has {prompt} tokens and max_tokens is {asked or 1}, together more than the model's "
                f"{positions} positions; shorten the prompt or ask for less",
                code="context_length_exceeded",
            )
        return asked or min(most, room)

    def _like(self, body: GenerationBody, ids: list[int], policy: Policy, new: int) -> Request:
        """A request with the logits processors of this one. transformers prepares them, which takes milliseconds, so
        the result is cached for each combination of options, unless it depends on the prompt."""
        options = _generation_options(body)
        key = tuple(sorted(options.items()))
        if key in self._known:
            return self._known[key]
        [found] = self._model.requests([ids], policy=policy, max_new_tokens=new, **options)
        if all(type(processor) in _ANY_PROMPT for processor in found.processors) and not found.criteria:
            if len(self._known) >= _KINDS:
                self._known.clear()
            self._known[key] = replace(found, prompt=())
        return found


def _generation_options(body: GenerationBody) -> dict[str, Any]:
    """The options of `Model.generate` that determine the logits processors."""
    names: Sequence[str] = () if body.temperature == 0 else ("temperature", "top_p", "top_k", "min_p")
    options = {name: value for name in names if (value := getattr(body, name)) is not None}
    if body.temperature == 0:
        options["do_sample"] = False
    elif body.seed is not None:
        options["seed"] = 0  # any value: each row gets its own seed
    if body.repetition_penalty is not None:
        options["repetition_penalty"] = body.repetition_penalty
    return options
