"""`Model`: what a user holds. Text in, text out; everything about tokens is `decoding`'s."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

import torch
from transformers import LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase, RepetitionPenaltyLogitsProcessor

from multitoken.decoding.loop import Decoder
from multitoken.decoding.policies import Exact, NextToken, Policy
from multitoken.decoding.records import Chunk
from multitoken.errors import ModelError

from .loading import load_causal_lm
from .mtp_config import MtpConfig
from .prompts import Message, encode_prompt
from .selftest import check_blocks

Prompt = str | list[Message]

# What a checkpoint's generation_config may ask of greedy decoding that is not done here (yet): refused, not dropped.
_NOT_HONOURED = {
    "no_repeat_ngram_size": (None, 0),
    "bad_words_ids": (None, []),
    "suppress_tokens": (None, []),
    "begin_suppress_tokens": (None, []),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "min_new_tokens": (None, 0),
    "min_length": (None, 0),
    "sequence_bias": (None, {}),
    "exponential_decay_length_penalty": (None,),
}


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
            processors=_processors(hf),
        )

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
        """Exact where the model was adapted: several tokens a step, and next-token decoding's output."""
        return Exact() if self.mtp else NextToken()

    def encode(self, prompt: Prompt) -> list[int]:
        """The ids that generation continues: the chat template's rendering where there is one."""
        return encode_prompt(prompt, self.tokenizer)

    @overload
    def generate(
        self, prompt: str | list[Message], *, policy: Policy | None = ..., max_new_tokens: int = ...
    ) -> Generation: ...
    @overload
    def generate(
        self, prompt: list[str] | list[list[Message]], *, policy: Policy | None = ..., max_new_tokens: int = ...
    ) -> list[Generation]: ...
    def generate(
        self, prompt: Any, *, policy: Policy | None = None, max_new_tokens: int = 256
    ) -> Generation | list[Generation]:
        """Answer a prompt (a string, or a chat as a list of messages), or each of a list of prompts, one by one.

        Greedy. `policy=None`: `default_policy`. Raises `DecodingError` (a ValueError) for what cannot be decoded and
        `UsageError` for a prompt that cannot be.
        """
        if _is_many(prompt):
            return [self._generate(p, policy, max_new_tokens) for p in prompt]
        return self._generate(prompt, policy, max_new_tokens)

    def stream(self, prompt: Prompt, *, policy: Policy | None = None, max_new_tokens: int = 256) -> Iterator[Chunk]:
        """The chunks of one answer as they come, each with its text. The texts end to end are the whole answer."""
        chunks = self.decoder.decode(
            [self.encode(prompt)], policy=policy or self.default_policy, max_new_tokens=max_new_tokens
        )
        return self._with_text(chunks, max_new_tokens)

    def _generate(self, prompt: Prompt, policy: Policy | None, max_new_tokens: int) -> Generation:
        started = self._now()
        bare = self.decoder.decode(
            [self.encode(prompt)], policy=policy or self.default_policy, max_new_tokens=max_new_tokens
        )
        plain = list(bare)
        seconds = self._now() - started
        return Generation.of(self._with_text(plain, max_new_tokens), seconds)

    def _now(self) -> float:
        if self.hf.device.type == "cuda":
            torch.cuda.synchronize(self.hf.device)
        return time.perf_counter()

    def _decode_text(self, ids: list[int]) -> str:
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        assert isinstance(text, str)
        return text

    def _with_text(self, chunks: Iterable[Chunk], max_new_tokens: int) -> Iterator[Chunk]:
        """Texts by difference of the whole so far: a character may be spread over tokens, and tokens over chunks.

        Nothing is held back but the first bytes of a character whose rest is still to come; the last chunk shows even
        those, as the replacement character.
        """
        ids: list[int] = []
        shown = ""
        for chunk in chunks:
            ids += chunk.token_ids
            text = self._decode_text(ids)
            last = len(ids) == max_new_tokens or ids[-1] in self.decoder.eos_ids
            if last or not text.endswith("\ufffd"):
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


def _processors(hf: PreTrainedModel) -> LogitsProcessorList:
    """What the checkpoint's generation_config asks of greedy decoding."""
    config = hf.generation_config
    processors = LogitsProcessorList()
    if config is None:
        return processors
    for name, neutral in _NOT_HONOURED.items():
        value = getattr(config, name, None)
        if value not in neutral:
            raise ModelError(
                f"the checkpoint's generation_config.json asks for {name}={value!r}, which is not supported yet; "
                f"remove it there, or set model.generation_config.{name} to None before building multitoken.Model"
            )
    penalty = getattr(config, "repetition_penalty", None)
    if penalty not in (None, 1.0):
        processors.append(RepetitionPenaltyLogitsProcessor(penalty))
    return processors


def _is_many(prompt: object) -> bool:
    """A list of prompts, and not one chat."""
    return isinstance(prompt, list | tuple) and not (prompt and all(isinstance(m, dict) for m in prompt))
