"""`Model`, the class that users work with: text in, text out. Everything about tokens is in `decoding`."""

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
    """A causal language model with its tokenizer and its decoder. Make one with `multitoken.load`."""

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
        if mtp is not None:  # so that hf.generate(custom_generate=...) does not attach a gate a second time
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
        """Load a model from a folder or Hub name, adapted or not. An ordinary model decodes with NextToken only.

        `device="auto"`: an accelerator if there is one. `dtype="auto"`: the checkpoint's own type on an accelerator, float32 on a
        CPU. `device_map` ("auto" or a dict), with `max_memory` and `offload_folder`: spread the model over several devices and
        the disk, as in transformers. `base`: where the base model of a gated adapter is, if not where the adapter says.
        `quantize="int8"` or `"nf4"`: hold the weights of linear layers in 8 bits (torchao) or 4 bits (bitsandbytes). The output
        of Exact is then identical to next-token decoding of the *quantized* model. `uno=True`: the folder is an UNO draft adapter
        (PEFT's format, as SGLang serves it) for the model that `base` names.
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
        """Compile the decoding steps with torch.compile, at once. On a CPU this takes minutes. Every step is faster afterwards,
        and the output is the same (docs/decoding.md). It pays off for programs that decode for a longer time. Raises
        `DecodingError` for a model with recurrent layers, or over several devices."""
        self.decoder.compile()
        return self

    def __repr__(self) -> str:
        trained = f"k={self.mtp.k}" if self.mtp else "next-token only"
        return f"Model({self.name!r}, {type(self.hf).__name__}, {trained})"

    @property
    def default_policy(self) -> Policy:
        """For an adapted model, the policy in its `generation_config.json: mtp`; if there is none, Exact: several tokens per step,
        and the output of next-token decoding. For an ordinary model, NextToken."""
        return stored_policy(self.hf) if self.mtp is not None else NextToken()

    def encode(
        self,
        prompt: Prompt,
        *,
        chat: bool | None = None,
        tools: Sequence[Tool] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """The token ids that generation continues. Text is rendered with the chat template if there is one (`chat=False`: the
        text is used as it is). Token ids are used as they are. If a chat ends with a message of the assistant, the answer
        continues it."""
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
        """Answer a prompt (a string, a chat as a list of messages, or token ids), or a list of prompts at the same time.

        Decoding is greedy by default. `policy=None`: `default_policy`. `max_new_tokens=None`: the length in the
        `generation_config` among the options, otherwise 256, or as many tokens as still fit after the prompt. `batch_size`: at
        most this many prompts of a list are answered at the same time (64 if not given); the next one starts when one is
        finished.

        options: those of transformers' `generate` (temperature, top_p, stop_strings, repetition_penalty, logits_processor, ...);
        `presence_penalty`; `frequency_penalty`; `seed` for sampling (a number, or a list with one per prompt); `logprobs=True`;
        those of `encode` (chat, tools, chat_template_kwargs); and `adaptive`, which feeds as many masks as pay off on this
        machine and changes no output. An unsupported option raises an error. With `num_return_sequences` above 1 the answers to a
        prompt follow each other in the list.

        Raises `DecodingError` (a ValueError) for what cannot be decoded and `UsageError` for an invalid prompt. If some answers
        fail (`RowsFailed`), the others are finished, and the error holds them in `answers`.
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
        """The chunks of one answer as they are decoded; their texts joined together are the answer. options: those of
        `generate`."""
        prepared = self._prepare([prompt], policy, max_new_tokens, options)
        if len(prepared.requests) > 1:
            raise UsageError("stream writes one answer; leave num_return_sequences out")
        return self._with_text(run(self.decoder, prepared))

    def requests(
        self, ids: list[list[int]], *, policy: Policy | None = None, max_new_tokens: int | None = None, **options: Any
    ) -> list[Request]:
        """The requests that `generate` would pass to an engine for these encoded prompts, for programs that run an engine
        themselves, such as a server. options: those of `generate`."""
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
