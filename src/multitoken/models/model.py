"""`Model`: what a user holds. Text in, text out; everything about tokens is `decoding`'s."""

import copy
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

import torch
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteriaList,
    StopStringCriteria,
)

from multitoken.decoding.arguments import option
from multitoken.decoding.draft_head import DraftHead
from multitoken.decoding.failures import DecodingError, RowsFailed
from multitoken.decoding.generate import Prepared, prepare, run
from multitoken.decoding.loop import Decoder
from multitoken.decoding.policies import NextToken, Policy
from multitoken.decoding.records import Chunk
from multitoken.decoding.row import Request
from multitoken.errors import UsageError

from .generation import Generation
from .loading import load_causal_lm
from .mtp_config import MtpConfig
from .prompts import Message, Tool, encode_prompt, eos_ids, is_many
from .selftest import check_blocks
from .stored_policy import stored_policy
from .text import with_text

Prompt = str | list[Message] | list[int]

_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
_NEW = 256  # tokens of an answer whose length nobody says
_RENDERING = ("chat", "tools", "chat_template_kwargs")
_NOTHING = ("seed", "adaptive", "max_new_tokens", "generation_config", "do_sample")  # None is as good as left out
_ELSEWHERE = {  # arguments of transformers' generate whose part something else plays here
    "inputs": "the prompt",
    "input_ids": "the prompt",
    "attention_mask": "the prompts, which need no padding",
    "tokenizer": "the model's own tokenizer",
    "max_length": "max_new_tokens",
    "return_dict_in_generate": "the Generation that is returned",
    "mtp": "policy, seed and adaptive",
    "mtp_chunks": "Generation.chunks, or stream",
}


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
        return cls(loaded.model, loaded.tokenizer, loaded.mtp, loaded.name, loaded.head)

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
        """Each prompt by itself: without padding, what its processors are shown does not depend on its neighbours."""
        rendering = {name: options[name] for name in _RENDERING if name in options}
        options = {name: value for name, value in options.items() if name not in _RENDERING}
        if options.pop("logprobs", False):
            options["output_logits"] = True
        encoded = [self.encode(prompt, **rendering) for prompt in prompts]
        for name, instead in _ELSEWHERE.items():
            if name in options:
                raise DecodingError(f"{name} is not an argument here; its part is played by {instead}")
        if max_new_tokens is not None and (
            isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, int) or max_new_tokens < 1
        ):
            raise DecodingError(f"max_new_tokens is {max_new_tokens!r}; expected a whole number of at least 1")
        given = options.get("generation_config")
        says_length = given is not None and (given.max_new_tokens is not None or given.max_length is not None)
        implicit = max_new_tokens is None and not says_length
        options, config = self._with_defaults({**options, "max_new_tokens": max_new_tokens})
        ours = {name: options.pop(name) for name in ("seed", "adaptive") if name in options}
        seeds = ours.get("seed")
        if isinstance(seeds, list | tuple) and len(seeds) != len(encoded):
            raise DecodingError(f"{len(seeds)} seeds for {len(encoded)} prompts; expected one number, or one a prompt")
        direct = {name: options.pop(name) for name in ("logits_processor", "streamer") if name in options}
        if direct.get("streamer") is not None and len(encoded) > 1:
            raise DecodingError(f"a streamer takes one prompt, found {len(encoded)}")
        criteria = StoppingCriteriaList(options.pop("stopping_criteria", None) or [])
        if stops := option("stop_strings", options, config, self.hf.generation_config):
            criteria.append(StopStringCriteria(self.tokenizer, stops))  # it reads the whole vocabulary: once is enough
            options["stop_strings"] = None
        prepared: list[Prepared] = []
        for i, ids in enumerate(encoded):
            if not ids:
                raise DecodingError(f"prompt {i} is empty; it needs at least one token")
            prepared.append(
                prepare(
                    self.decoder,
                    torch.tensor([ids], device=self.hf.device),
                    generation_config=config,
                    stopping_criteria=criteria,
                    policy=policy or self.default_policy,
                    mtp=ours if not isinstance(seeds, list | tuple) else {**ours, "seed": seeds[i]},
                    # With a seed of its own a prompt draws what it would draw alone.
                    first_row=0
                    if isinstance(seeds, list | tuple)
                    else sum(len(before.requests) for before in prepared),
                    arguments={
                        **options,
                        **({"max_new_tokens": self._room_behind(ids)} if implicit else {}),
                        "attention_mask": torch.ones(1, len(ids), dtype=torch.long),
                    },
                    **direct,
                )
            )
        return replace(prepared[0], requests=[request for each in prepared for request in each.requests])

    def _with_defaults(self, options: dict[str, Any]) -> tuple[dict[str, Any], GenerationConfig | None]:
        """The options, and the generation config that may be among them, with what is meant where they say nothing."""
        options = {name: value for name, value in options.items() if value is not None or name not in _NOTHING}
        config: GenerationConfig | None = copy.deepcopy(options.pop("generation_config", None))
        defaults = {
            "do_sample": any(options.get(name) is not None for name in ("seed", *_SAMPLING)),
            "eos_token_id": sorted(self.decoder.eos_ids) or None,
            "pad_token_id": 0,
            "max_new_tokens": _NEW if config is None or config.max_length is None else None,
        }
        if config is None:
            return defaults | options, None
        for name, value in defaults.items():
            if getattr(config, name) is None and name not in options:
                setattr(config, name, value)
        return options, config

    def _room_behind(self, ids: Sequence[int]) -> int:
        """The implicit length of an answer; a prompt that leaves no room at all is refused as one for a single token."""
        positions = self.decoder.max_positions
        return _NEW if positions is None else max(1, min(_NEW, positions - len(ids)))

    def _decode_text(self, ids: list[int]) -> str:
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        assert isinstance(text, str)
        return text

    def _with_text(self, chunks: Iterable[Chunk]) -> Iterator[Chunk]:
        return with_text(chunks, self._decode_text)
