"""`Model`: what a user holds. Text in, text out; everything about tokens is `decoding`'s."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from multitoken.decoding.generate import Prepared, prepare
from multitoken.decoding.loop import Decoder
from multitoken.decoding.policies import Exact, NextToken, Policy, make_policy
from multitoken.decoding.records import Chunk, DecodingError
from multitoken.errors import UsageError

from .loading import load_causal_lm
from .mtp_config import MtpConfig
from .prompts import Message, encode_prompt
from .selftest import check_blocks

Prompt = str | list[Message]

_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")


@dataclass(frozen=True)
class Generation:
    """One answer. `token_ids` are the emitted ids, EOS included; `chunks` has one entry per forward pass, the prefill's
    first. `seconds` is wall-clock time, prefill included."""

    text: str
    token_ids: tuple[int, ...]
    chunks: tuple[Chunk, ...]
    seconds: float

    @classmethod
    def of(cls, chunks: Iterable[Chunk], seconds: float) -> "Generation":
        """The answer that these chunks, each with its text, make up."""
        chunks = tuple(chunks)
        ids = tuple(i for chunk in chunks for i in chunk.token_ids)
        return cls("".join(chunk.text for chunk in chunks), ids, chunks, seconds)

    @property
    def forward_passes(self) -> int:
        return len(self.chunks)

    @property
    def tokens_per_step(self) -> float:
        """(tokens - those of the prefill pass) / forward passes after the prefill; 0.0 where there was only the prefill."""
        steps = len(self.chunks) - 1
        return (len(self.token_ids) - len(self.chunks[0].token_ids)) / steps if steps else 0.0


class Model:
    """A causal language model with its tokenizer, and the way it decodes. Make one with `multitoken.load`."""

    def __init__(
        self, hf: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, mtp: MtpConfig | None = None, name: str = "model"
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
        )
        if mtp is not None:  # lest hf.generate(custom_generate=...) put a gate on a second time
            hf.__dict__["_mtp_decoder"] = self.decoder

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        attn_implementation: str = "sdpa",
        trust_remote_code: bool = False,
        base: str | Path | None = None,
        quantize: str = "none",
    ) -> "Model":
        """A folder or Hub name, adapted or not. An ordinary model decodes with NextToken only.

        `base`: where the model of a gated adapter lies, if not where the adapter says. `quantize="int8"`: linear layers
        with 8-bit weights (torchao, weight-only); next-token decoding of *that* model is then what Exact keeps to.
        """
        loaded = load_causal_lm(
            path,
            device=device,
            dtype=dtype,
            attn_implementation=attn_implementation,
            trust_remote_code=trust_remote_code,
            base=base,
            quantize=quantize,
        )
        return cls(loaded.model, loaded.tokenizer, loaded.mtp, loaded.name)

    def __repr__(self) -> str:
        trained = f"k={self.mtp.k}" if self.mtp else "next-token only"
        return f"Model({self.name!r}, {type(self.hf).__name__}, {trained})"

    @property
    def default_policy(self) -> Policy:
        """Exact where the model was adapted, unless its `generation_config.json: mtp` says otherwise: several tokens a step,
        and next-token decoding's output."""
        if self.mtp is None:
            return NextToken()
        says: dict[str, Any] = getattr(self.hf.generation_config, "mtp", None) or {}
        return make_policy(says.get("policy", Exact.name), threshold=says.get("threshold"), k=says.get("k"))

    def encode(self, prompt: Prompt) -> list[int]:
        """The ids that generation continues: the chat template's rendering where there is one."""
        return encode_prompt(prompt, self.tokenizer)

    @overload
    def generate(
        self, prompt: str | list[Message], *, policy: Policy | None = ..., max_new_tokens: int = ..., **options: Any
    ) -> Generation: ...
    @overload
    def generate(
        self,
        prompt: list[str] | list[list[Message]],
        *,
        policy: Policy | None = ...,
        max_new_tokens: int = ...,
        **options: Any,
    ) -> list[Generation]: ...
    def generate(
        self, prompt: Any, *, policy: Policy | None = None, max_new_tokens: int = 256, **options: Any
    ) -> Generation | list[Generation]:
        """Answer a prompt (a string, or a chat as a list of messages), or a list of prompts side by side.

        Greedy unless asked otherwise. `policy=None`: `default_policy`. options: any of transformers' `generate`
        (temperature, top_p, stop_strings, repetition_penalty, logits_processor, ...), `seed` of sampling, and `adaptive`:
        feed as many masks as pay on this machine, which changes no output and is measured once. What is not supported
        raises. With `num_return_sequences` above 1 the answers to a prompt follow each other in a list.

        Raises `DecodingError` (a ValueError) for what cannot be decoded and `UsageError` for a prompt that cannot be.
        """
        started = self._now()
        prompts = prompt if _is_many(prompt) else [prompt]
        if not prompts:
            return []
        prepared = self._prepare(prompts, policy, max_new_tokens, options)
        rows: list[list[Chunk]] = [[] for _ in prepared.requests]
        for chunk in self.decoder.run(prepared.requests, adaptive=prepared.adaptive):
            rows[chunk.row].append(chunk)
        seconds = self._now() - started
        answers = [Generation.of(self._with_text(row), seconds) for row in rows]
        return answers if _is_many(prompt) or len(answers) > 1 else answers[0]

    def stream(
        self, prompt: Prompt, *, policy: Policy | None = None, max_new_tokens: int = 256, **options: Any
    ) -> Iterator[Chunk]:
        """The chunks of one answer as they come, each with its text. The texts end to end are the whole answer. options:
        those of `generate`."""
        prepared = self._prepare([prompt], policy, max_new_tokens, options)
        if len(prepared.requests) > 1:
            raise UsageError("stream writes one answer; leave num_return_sequences out")
        return self._with_text(self.decoder.run(prepared.requests, adaptive=prepared.adaptive))

    def _prepare(
        self, prompts: list[Prompt], policy: Policy | None, max_new_tokens: int, options: dict[str, Any]
    ) -> Prepared:
        """Left-padded rows, and transformers' own preparation of everything else."""
        options = dict(options)
        if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, int) or max_new_tokens < 1:
            raise DecodingError(f"max_new_tokens is {max_new_tokens!r}; expected a whole number of at least 1")
        ids = [self.encode(prompt) for prompt in prompts]
        for i, row in enumerate(ids):
            if not row:
                raise DecodingError(f"prompt {i} is empty; it needs at least one token")
        longest = max(map(len, ids))
        device = self.hf.device
        inputs = torch.tensor([[0] * (longest - len(row)) + row for row in ids], device=device)
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in ids], device=device)
        ours = {name: options.pop(name) for name in ("seed", "adaptive") if name in options}
        options.setdefault("do_sample", "seed" in ours or any(name in options for name in _SAMPLING))
        options.setdefault("eos_token_id", sorted(self.decoder.eos_ids) or None)
        options.setdefault("pad_token_id", 0)
        return prepare(
            self.decoder,
            inputs,
            attention_mask=mask,
            tokenizer=self.tokenizer,
            policy=policy or self.default_policy,
            max_new_tokens=max_new_tokens,
            mtp=ours,
            **options,
        )

    def _now(self) -> float:
        if self.hf.device.type == "cuda":
            torch.cuda.synchronize(self.hf.device)
        return time.perf_counter()

    def _decode_text(self, ids: list[int]) -> str:
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        assert isinstance(text, str)
        return text

    def _with_text(self, chunks: Iterable[Chunk]) -> Iterator[Chunk]:
        """Texts by difference of the whole so far: a character may be spread over tokens, and tokens over chunks.

        Nothing is held back but the first bytes of a character whose rest is still to come; the last chunk shows even
        those, as the replacement character.
        """
        ids: list[int] = []
        shown = ""
        for chunk in chunks:
            ids += chunk.token_ids
            text = self._decode_text(ids)
            if chunk.finish or not text.endswith("\ufffd"):
                fresh, shown = text[len(shown) :], text
            else:
                whole = text.rstrip("\ufffd")
                fresh, shown = whole[len(shown) :], max(shown, whole, key=len)
            yield replace(chunk, text=fresh)


def eos_ids(hf: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
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


def _is_many(prompt: object) -> bool:
    """A list of prompts, and not one chat."""
    return isinstance(prompt, list | tuple) and not (prompt and all(isinstance(m, dict) for m in prompt))
