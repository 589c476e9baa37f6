"""Turn encoded prompts and the options of `generate` into requests for an engine. Options that are not given get defaults
here."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase, StoppingCriteriaList, StopStringCriteria

from multitoken.decoding.arguments import check_length, option
from multitoken.decoding.failures import DecodingError
from multitoken.decoding.generate import Prepared, prepare
from multitoken.decoding.loop import Decoder
from multitoken.decoding.policies import Policy

_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
_NEW = 256  # tokens of an answer if no length is given
_NOTHING = ("seed", "adaptive", "max_new_tokens", "generation_config", "do_sample")  # None means the same as not given
_ELSEWHERE = {  # arguments of transformers' generate that something else replaces here
    "inputs": "the prompt",
    "input_ids": "the prompt",
    "attention_mask": "the prompts, which need no padding",
    "tokenizer": "the model's own tokenizer",
    "max_length": "max_new_tokens",
    "return_dict_in_generate": "the Generation that is returned",
    "mtp": "policy, seed and adaptive",
    "mtp_chunks": "Generation.chunks, or stream",
}


def prepare_all(
    decoder: Decoder,
    tokenizer: PreTrainedTokenizerBase,
    encoded: Sequence[list[int]],
    policy: Policy,
    *,
    max_new_tokens: int | None,
    options: dict[str, Any],
) -> Prepared:
    """Prepare each prompt by itself: there is no padding, so the input of its logits processors does not depend on the other
    prompts. options: those of `Model.generate`, without those that render prompts. Raises `DecodingError` for what cannot be
    decoded."""
    options = dict(options)
    wants_logits = options.pop("logprobs", False)
    for name, instead in _ELSEWHERE.items():
        if name in options:
            raise DecodingError(f"{name} is not an argument here; it is replaced by {instead}")
    if wants_logits:
        # transformers warns if only one of the two is set.
        options |= {"output_logits": True, "return_dict_in_generate": True}
    if max_new_tokens is not None:
        check_length(max_new_tokens)
    given = options.get("generation_config")
    says_length = given is not None and (given.max_new_tokens is not None or given.max_length is not None)
    implicit = max_new_tokens is None and not says_length
    options, config = _with_defaults({**options, "max_new_tokens": max_new_tokens}, decoder)
    ours = {name: options.pop(name) for name in ("seed", "adaptive") if name in options}
    seeds = ours.get("seed")
    each_its_own = isinstance(seeds, list | tuple)
    if each_its_own and len(seeds) != len(encoded):
        raise DecodingError(f"{len(seeds)} seeds for {len(encoded)} prompts; expected one number, or one per prompt")
    direct = {name: options.pop(name) for name in ("logits_processor", "streamer") if name in options}
    if direct.get("streamer") is not None and len(encoded) > 1:
        raise DecodingError(f"a streamer takes one prompt, found {len(encoded)}")
    criteria = StoppingCriteriaList(options.pop("stopping_criteria", None) or [])
    if stops := option("stop_strings", options, config, decoder.model.generation_config):
        criteria.append(StopStringCriteria(tokenizer, stops))  # made only once, because it reads the whole vocabulary
        options["stop_strings"] = None
    prepared: list[Prepared] = []
    for i, ids in enumerate(encoded):
        if not ids:
            raise DecodingError(f"prompt {i} is empty; it needs at least one token")
        length = {"max_new_tokens": _room_behind(ids, decoder)} if implicit else {}
        prepared.append(
            prepare(
                decoder,
                torch.tensor([ids], device=decoder.model.device),
                generation_config=config,
                stopping_criteria=criteria,
                policy=policy,
                mtp={**ours, "seed": seeds[i]} if each_its_own else ours,
                # With its own seed, a prompt gets the same random draws as it would alone.
                first_row=0 if each_its_own else sum(len(before.requests) for before in prepared),
                arguments={**options, **length, "attention_mask": torch.ones(1, len(ids), dtype=torch.long)},
                **direct,
            )
        )
    return replace(prepared[0], requests=[request for each in prepared for request in each.requests])


def _with_defaults(options: dict[str, Any], decoder: Decoder) -> tuple[dict[str, Any], GenerationConfig | None]:
    """The options, and the generation config that may be among them, with defaults for what they do not set."""
    options = {name: value for name, value in options.items() if value is not None or name not in _NOTHING}
    config: GenerationConfig | None = copy.deepcopy(options.pop("generation_config", None))
    defaults = {
        "do_sample": any(options.get(name) is not None for name in ("seed", *_SAMPLING)),
        "eos_token_id": sorted(decoder.eos_ids) or None,
        "pad_token_id": 0,
        "max_new_tokens": _NEW if config is None or config.max_length is None else None,
    }
    if config is None:
        return defaults | options, None
    for name, value in defaults.items():
        if getattr(config, name) is None and name not in options:
            setattr(config, name, value)
    return options, config


def _room_behind(ids: Sequence[int], decoder: Decoder) -> int:
    """The default length of an answer. At least 1: a prompt that leaves no room is then refused like a request for one token."""
    positions = decoder.max_positions
    return _NEW if positions is None else max(1, min(_NEW, positions - len(ids)))
