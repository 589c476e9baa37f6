"""`Model`: what a user holds. Text in, text out; everything about tokens is `decoding`'s."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from multitoken.decoding.draft_head import DraftHead
from multitoken.decoding.failures import RowsFailed
from multitoken.decoding.generate import Prepared, run
from multitoken.decoding.loop import Decoder
from multitoken.decoding.policies import NextToken, Policy
from multitoken.decoding.records import Chunk
from multitoken.decoding.row import Request
from multitoken.errors import UsageError

from .generation import Generation
from .loading import load_causal_lm
from .mtp_config import MtpConfig
from .placement import say_if_slow
from .prompts import Message, Tool, encode_prompt, eos_ids, is_many
from .requests import prepare_all
from .selftest import check_blocks
from .stored_policy import stored_policy
from .text import with_text

Prompt = str | list[Message] | list[int]

_RENDERING = ("chat", "tools", "chat_template_kwargs")


class Model:
    """A causal language model with its tokenizer, and the way it decodes. Make one with `multitoken.load`."""

    def __init__(
        self,
        hf: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        mtp: MtpConfig | None = None,
        name: str = "model",
        head: DraftHead | None = None,
    ) -> None:
        self.hf = hf
        self.tokenizer = tokenizer
        self.mtp = mtp
        self.name = name
        if mtp is not None:
            check_blocks(hf, mtp.mask_token_id)
        self.decoder = Decoder(
            hf,
            mask_id=mtp.mask_token_id if mtp else None,
            trained_k=mtp.k if mtp else 1,
            eos_ids=eos_ids(hf, tokenizer),
            head=head,
        )
        if mtp is not None:  # lest hf.generate(custom_generate=...) put a gate on a second time
            hf.__dict__["_mtp_decoder"] = self.decoder

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        device: str | torch.device = "auto",
        dtype: torch.dtype | str = "auto",
        device_map: str | Mapping[str, Any] | None = None,
        attn_implementation: str = "sdpa",
        trust_remote_code: bool = False,
        base: str | Path | None = None,
        quantize: str = "none",
        uno: bool = False,
        **more: Any,
    ) -> "Model":
        """A folder or Hub name, adapted or not. An ordinary model decodes with NextToken only.

        `device="auto"`: an accelerator if there is one. `dtype="auto"`: the checkpoint's own on an accelerator, float32 on a CPU.
        `device_map` ("auto" or a dict), and `max_memory` and `offload_folder` with it: a model over several devices and the
        disk, as in transformers. `base`: where the model of a gated adapter lies, if not where the adapter says.
        `quantize="int8"` or `"nf4"`: linear layers with weights of 8 bits (torchao) or 4 (bitsandbytes); next-token decoding of
        *that* model is then what Exact keeps to. `uno=True`: an UNO draft adapter (PEFT's format, as SGLang serves it), over the model that `base` names.
        """
        loaded = load_causal_lm(
            path,
            device=device,
            dtype=dtype,
            device_map=device_map,
            attn_implementation=attn_implementation,
            trust_remote_code=trust_remote_code,
            base=base,
            quantize=quantize,
            uno=uno,
            **more,
        )
        say_if_slow(loaded.model.dtype, loaded.model.device)
        return cls(loaded.model, loaded.tokenizer, loaded.mtp, loaded.name, loaded.head)

    def compile(self) -> "Model":
        """Compile the steps of decoding with torch.compile, now: on a CPU that takes minutes, and every step is faster afterwards, not
        its output another (docs/decoding.md). For whoever decodes for longer than a moment. Raises `DecodingError` for a model with
        recurrent layers, or over several devices."""
        self.decoder.compile()
        return self

    def __repr__(self) -> str:
        trained = f"k={self.mtp.k}" if self.mtp else "next-token only"
        return f"Model({self.name!r}, {type(self.hf).__name__}, {trained})"

    @property
    def default_policy(self) -> Policy:
        """Exact where the model was adapted, unless its `generation_config.json: mtp` says otherwise: several tokens a step,
        and next-token decoding's output."""
        return stored_policy(self.hf) if self.mtp is not None else NextToken()

    def encode(
        self,
        prompt: Prompt,
        *,
        chat: bool | None = None,
        tools: Sequence[Tool] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """The ids that generation continues: the chat template's rendering where there is one (`chat=False`: the text as it is);
        token ids as they are. Where a chat ends with the assistant's message, the answer goes on with it."""
        return encode_prompt(prompt, self.tokenizer, chat=chat, tools=tools, template=chat_template_kwargs)

    @overload
    def generate(
        self,
        prompt: str | list[Message] | list[int],
        *,
        policy: Policy | None = ...,
        max_new_tokens: int | None = ...,
        batch_size: int | None = ...,
        **options: Any,
    ) -> Generation: ...
    @overload
    def generate(
        self,
        prompt: list[str] | list[list[Message]] | list[list[int]],
        *,
        policy: Policy | None = ...,
        max_new_tokens: int | None = ...,
        batch_size: int | None = ...,
        **options: Any,
    ) -> list[Generation]: ...
    def generate(
        self,
        prompt: Any,
        *,
        policy: Policy | None = None,
        max_new_tokens: int | None = None,
        batch_size: int | None = None,
        **options: Any,
    ) -> Generation | list[Generation]:
        """Answer a prompt (a string, a chat as a list of messages, or token ids), or a list of prompts side by side.

        Greedy unless asked otherwise. `policy=None`: `default_policy`. `max_new_tokens=None`: what a `generation_config`
        among the options says, or else 256, or as many as still fit behind the prompt. `batch_size`: so many prompts of a list are
        answered side by side at most (64 if not given); the next one begins when one is done. options: any of transformers' `generate`
        (temperature, top_p, stop_strings, repetition_penalty, logits_processor, ...), `presence_penalty`, `frequency_penalty`, `seed`
        of sampling (a number, or a list of one a prompt), `logprobs=True`, those of `encode` (chat, tools, chat_template_kwargs), and `adaptive`: feed as many masks as pay
        on this machine, which changes no output. What is not supported raises. With `num_return_sequences` above 1 the answers to a
        prompt follow each other in a list.

        Raises `DecodingError` (a ValueError) for what cannot be decoded and `UsageError` for a prompt that cannot be. Where some
        answers fail (`RowsFailed`), the others are finished and in its `answers`.
        """
        started = time.perf_counter()
        if batch_size is not None and (
            isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1
        ):
            raise UsageError(f"batch_size is {batch_size!r}; expected a whole number of at least 1")
        prompts = prompt if is_many(prompt) else [prompt]
        if not prompts:
            return []
        wanted = bool(options.get("logprobs"))
        prepared = self._prepare(prompts, policy, max_new_tokens, options)
        rows: list[list[Chunk]] = [[] for _ in prepared.requests]
        seconds = [0.0] * len(rows)
        try:
            for chunk in run(self.decoder, prepared, batch_size):
                rows[chunk.row].append(chunk)
                seconds[chunk.row] = time.perf_counter() - started
        except RowsFailed as failed:
            failed.answers = [
                None if i in failed.errors else Generation.of(self._with_text(row), seconds[i], logprobs=wanted)
                for i, row in enumerate(rows)
            ]
            raise
        answers = [
            Generation.of(self._with_text(row), spent, logprobs=wanted)
            for row, spent in zip(rows, seconds, strict=True)
        ]
        return answers if is_many(prompt) or len(answers) > 1 else answers[0]

    def stream(
        self, prompt: Prompt, *, policy: Policy | None = None, max_new_tokens: int | None = None, **options: Any
    ) -> Iterator[Chunk]:
        """The chunks of one answer as they come; their texts end to end are the answer. options: those of `generate`."""
        prepared = self._prepare([prompt], policy, max_new_tokens, options)
        if len(prepared.requests) > 1:
            raise UsageError("stream writes one answer; leave num_return_sequences out")
        return self._with_text(run(self.decoder, prepared))

    def requests(
        self, ids: list[list[int]], *, policy: Policy | None = None, max_new_tokens: int | None = None, **options: Any
    ) -> list[Request]:
        """What `generate` would hand to an engine for these encoded prompts: for whoever drives one, such as a server.
        options: those of `generate`."""
        return self._prepare(ids, policy, max_new_tokens, options).requests

    def _prepare(
        self, prompts: Sequence[Prompt], policy: Policy | None, max_new_tokens: int | None, options: dict[str, Any]
    ) -> Prepared:
        rendering = {name: options[name] for name in _RENDERING if name in options}
        others = {name: value for name, value in options.items() if name not in _RENDERING}
        encoded = [self.encode(prompt, **rendering) for prompt in prompts]
        return prepare_all(
            self.decoder,
            self.tokenizer,
            encoded,
            policy or self.default_policy,
            max_new_tokens=max_new_tokens,
            options=others,
        )

    def _decode_text(self, ids: list[int]) -> str:
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        assert isinstance(text, str)
        return text

    def _with_text(self, chunks: Iterable[Chunk]) -> Iterator[Chunk]:
        return with_text(chunks, self._decode_text)
