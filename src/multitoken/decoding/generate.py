"""`model.generate(...)` as transformers' users know it, decoded by this folder.

Preparation is transformers' own: `generate` goes through `GenerationMixin.generate`, which merges the generation config and
builds the logits processors and stopping criteria, and hands over to the engine here. What the engine cannot do is refused
by name. An exported checkpoint holds this folder as `custom_generate/`, and then multitoken need not be installed:

    model = AutoModelForCausalLM.from_pretrained(NAME, trust_remote_code=True)
    model.generate(**tokenizer("...", return_tensors="pt"), max_new_tokens=200)
"""

import copy
import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    GenerationMixin,
    LogitsProcessorList,
    PrefixConstrainedLogitsProcessor,
    PreTrainedModel,
    StoppingCriteriaList,
    StopStringCriteria,
)
from transformers.generation.stopping_criteria import EosTokenCriteria, MaxLengthCriteria
from transformers.generation.utils import GenerateDecoderOnlyOutput
from transformers.utils.hub import cached_file

from .gate_file import CONFIG, WEIGHTS, read_gate
from .loop import Decoder
from .policies import Policy, make_policy, with_trained_k
from .records import Chunk, DecodingError
from .row import Request

ADAPTER_FOLDER = "mtp_adapter"  # of a checkpoint that holds its base and its gate
OPTIONS = ("policy", "threshold", "k", "seed", "adaptive")
_REFUSED_ARGUMENTS = (
    "assistant_model",
    "assistant_tokenizer",
    "prompt_lookup_num_tokens",
    "negative_prompt_ids",
    "negative_prompt_attention_mask",
    "guidance_scale",
    "past_key_values",
    "position_ids",
    "inputs_embeds",
    "cache_implementation",
    "synced_gpus",
    "output_attentions",
    "output_hidden_states",
    "token_type_ids",
)


@dataclass(frozen=True)
class Prepared:
    """What a call of `generate` comes to: a request a row, and what the answer is to look like."""

    requests: list[Request]
    adaptive: bool
    input_ids: Tensor
    config: GenerationConfig


def generate(
    inputs: Tensor | None = None,
    generation_config: GenerationConfig | None = None,
    logits_processor: LogitsProcessorList | None = None,
    stopping_criteria: StoppingCriteriaList | None = None,
    *,
    model: PreTrainedModel,
    streamer: Any = None,
    mtp_chunks: list[Chunk] | None = None,
    **kwargs: Any,
) -> Any:
    """What `GenerationMixin.generate` takes and returns, and two arguments of ours.

    mtp: how to decode, a dict of `policy` ("exact", "confadapt", "static", "next-token"), `threshold`, `k`, `seed` of
    sampling, and `adaptive`, whether to feed as many masks as pay on this machine. What it leaves out comes from
    `generation_config.json: mtp`; `policy` is "exact" if nothing says otherwise. mtp_chunks: a list that the chunks are
    appended to as they come.

    Raises `DecodingError` for what is not supported.
    """
    decoder = decoder_of(model)
    prepared = prepare(
        decoder,
        inputs,
        generation_config=generation_config,
        logits_processor=logits_processor,
        stopping_criteria=stopping_criteria,
        streamer=streamer,
        **kwargs,
    )
    if streamer is not None and len(prepared.requests) > 1:
        raise DecodingError(f"a streamer takes one prompt, found {len(prepared.requests)}")
    rows: list[list[Chunk]] = [[] for _ in prepared.requests]
    for chunk in decoder.run(prepared.requests, adaptive=prepared.adaptive):
        rows[chunk.row].append(chunk)
        if mtp_chunks is not None:
            mtp_chunks.append(chunk)
        if streamer is not None:
            streamer.put(torch.tensor(chunk.token_ids))
    if streamer is not None:
        streamer.end()
    return _output(prepared, rows)


def prepare(
    decoder: Decoder,
    inputs: Tensor | None = None,
    *,
    generation_config: GenerationConfig | None = None,
    stopping_criteria: StoppingCriteriaList | None = None,
    tokenizer: Any = None,
    mtp: Mapping[str, Any] | None = None,
    policy: Policy | None = None,
    **kwargs: Any,
) -> Prepared:
    """The requests of a call, by transformers' own preparation. `policy` goes before what `mtp` and the checkpoint say."""
    kwargs = {key: value for key, value in kwargs.items() if value is not None}
    for name in _REFUSED_ARGUMENTS:
        if name in kwargs and kwargs.pop(name) not in (False, 1.0):
            raise DecodingError(f"{name} is not supported by multi-token decoding; leave it out")
    if kwargs.pop("use_cache", True) is False:
        raise DecodingError("use_cache=False is not supported by multi-token decoding; leave it out")
    for name in ("custom_generate", "trust_remote_code"):
        kwargs.pop(name, None)
    config = generation_config or decoder.model.generation_config
    assert config is not None
    stops = kwargs.pop("stop_strings", None) or config.stop_strings
    criteria = StoppingCriteriaList(stopping_criteria or [])
    if stops:
        if tokenizer is None:
            raise DecodingError(f"stop_strings={stops!r} need the tokenizer: generate(..., tokenizer=tokenizer)")
        criteria.append(StopStringCriteria(tokenizer, stops))
    if config.stop_strings:  # generate() would look for a tokenizer that it does not hand to a loop of ours
        generation_config = copy.deepcopy(config)
        generation_config.stop_strings = None
    # Not model.generate: from_pretrained may have put this very file in its place.
    transformers_own: Any = vars(GenerationMixin)["generate"]
    return transformers_own(
        decoder.model,
        inputs,
        generation_config=generation_config,
        stopping_criteria=criteria,
        custom_generate=functools.partial(_loop, decoder=decoder, given=dict(mtp or {}), policy=policy),
        **kwargs,
    )


def _loop(
    model: PreTrainedModel,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    *,
    decoder: Decoder,
    given: dict[str, Any],
    policy: Policy | None,
    **model_kwargs: Any,  # an attention_mask by name would be taken out of generate()'s own sight
) -> Prepared:
    """Stands where `GenerationMixin.generate` calls its decoding loop: everything but that is prepared by then."""
    mode = generation_config.get_generation_mode()
    if mode not in ("greedy_search", "sample"):
        raise DecodingError(f"{mode.value} is not supported by multi-token decoding; use greedy search or sampling")
    if len(input_ids) > 1 and any(isinstance(p, PrefixConstrainedLogitsProcessor) for p in logits_processor):
        raise DecodingError("prefix_allowed_tokens_fn takes one prompt at a time, for rows are processed apart")
    chosen, seed, adaptive = _how(generation_config, given, policy, decoder)
    if generation_config.do_sample and seed is None:
        seed = int(torch.randint(2**63 - 1, ()))  # torch.manual_seed decides, as in transformers
    requests = _requests(
        decoder,
        input_ids,
        model_kwargs.get("attention_mask"),
        policy=chosen,
        max_new_tokens=int(generation_config.max_length or 0) - input_ids.shape[1],
        eos_ids=_ids(getattr(generation_config, "_eos_token_tensor", None)),
        processors=logits_processor,
        criteria=StoppingCriteriaList(
            c for c in stopping_criteria if not isinstance(c, EosTokenCriteria | MaxLengthCriteria)
        ),
        seed=seed if generation_config.do_sample else None,
        keep_scores=bool(generation_config.output_scores or generation_config.output_logits),
    )
    return Prepared(requests, adaptive, input_ids, generation_config)


def decoder_of(model: PreTrainedModel) -> Decoder:
    """The decoder of an adapted model as `from_pretrained` made it; its gate, if it has one, is put to work."""
    kept: Decoder | None = model.__dict__.get("_mtp_decoder")
    if kept is not None and kept.model is model:
        return kept
    facts = getattr(model.config, "mtp", None)
    if not isinstance(facts, dict) or not {"k", "mask_token_id"} <= facts.keys():
        raise DecodingError(
            f"config.json of {model.config.name_or_path or 'this model'} has no mtp block: it was not adapted to write "
            "several tokens a step; adapt it with multitoken, or use its ordinary generate"
        )
    if facts.get("method") == "gated":
        config, weights = (_file(model, f"{ADAPTER_FOLDER}/{name}") for name in (CONFIG, WEIGHTS))
        gate = read_gate(model, config, weights, facts["mask_token_id"])
        gate.attach(model)
        gate.merge(model)
    decoder = Decoder(model, mask_id=facts["mask_token_id"], trained_k=facts["k"])
    model.__dict__["_mtp_decoder"] = decoder
    return decoder


def _file(model: PreTrainedModel, name: str) -> str:
    """A file of the checkpoint that the model came from, wherever that is."""
    source = str(model.config.name_or_path)
    found = cached_file(source, name, revision=_revision(source))
    assert found is not None, "cached_file raises where there is none"
    return found


def _revision(source: str) -> str | None:
    """The commit of the hub's `source` that this very file came from: a model does not remember which it was loaded from.
    None for a folder, and where this file belongs to another repository."""
    owner, name, commit = ("", "", "", *Path(__file__).parts)[-5:-2]
    ours = [part.replace(".", "_dot_").replace("-", "_hyphen_") for part in source.split("/")]
    is_ours = [part.removeprefix("_") for part in ours] == [part.removeprefix("_") for part in (owner, name)]
    return commit if is_ours and re.fullmatch("[0-9a-f]{40}", commit) else None


def _how(
    config: GenerationConfig, given: dict[str, Any], policy: Policy | None, decoder: Decoder
) -> tuple[Policy, int | None, bool]:
    """(policy, seed, adaptive) from the call, and from `generation_config.json: mtp` where the call says nothing."""
    for name in given:
        if name not in OPTIONS:
            raise DecodingError(f"mtp has no option {name!r}; expected some of {', '.join(OPTIONS)}")
    defaults = dict(getattr(config, "mtp", None) or {})
    if "policy" in given:  # another policy's threshold is not this one's
        defaults = {name: value for name, value in defaults.items() if name not in ("threshold", "k")}
    options = {"policy": "exact", **defaults, **given}
    if policy is None:
        policy = make_policy(options["policy"], threshold=options.get("threshold"), k=options.get("k"))
    return with_trained_k(policy, decoder.trained_k), options.get("seed"), bool(options.get("adaptive", True))


def _requests(
    decoder: Decoder, input_ids: Tensor, attention_mask: Tensor | None, *, max_new_tokens: int, **common: Any
) -> list[Request]:
    """A request a row, without its padding, which may stand on either side. Processors and criteria are still shown it."""
    requests = []
    for i, ids in enumerate(input_ids.tolist()):
        real = attention_mask[i].tolist() if attention_mask is not None else [1] * len(ids)
        prompt = [token for token, there in zip(ids, real, strict=True) if there]
        requests.append(
            decoder.request(
                prompt,
                max_new_tokens=max_new_tokens,
                name=f"row {i}",
                row=i,
                shown_before=[token for token, there in zip(ids, real, strict=True) if not there],
                **common,
            )
        )
    return requests


def _ids(tensor: Tensor | None) -> frozenset[int]:
    return frozenset(tensor.flatten().tolist()) if tensor is not None else frozenset()


def _output(prepared: Prepared, rows: list[list[Chunk]]) -> Any:
    """What `generate` returns: the prompts as they were given, the new tokens, and padding behind shorter rows."""
    input_ids, config = prepared.input_ids, prepared.config
    new = [[token for chunk in row for token in chunk.token_ids] for row in rows]
    longest = max(map(len, new))
    pad = getattr(config, "_pad_token_tensor", None)
    filler = int(pad) if pad is not None else 0
    tail = torch.tensor([ids + [filler] * (longest - len(ids)) for ids in new], device=input_ids.device)
    sequences = torch.cat([input_ids, tail], 1)
    if not config.return_dict_in_generate:
        return sequences
    kept = {name: _by_token(rows, name) for name in ("scores", "logits") if getattr(config, f"output_{name}")}
    return GenerateDecoderOnlyOutput(sequences=sequences, **kept)  # pyright: ignore[reportArgumentType]


def _by_token(rows: list[list[Chunk]], name: str) -> tuple[Tensor, ...]:
    """[rows, vocabulary] for each new token; zeros where a row has ended."""
    of_rows = [torch.cat([getattr(chunk, name) for chunk in row]) for row in rows]
    padded = torch.nn.utils.rnn.pad_sequence(of_rows)
    return tuple(padded)
