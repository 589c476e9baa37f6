"""`model.generate(...)` as users of transformers know it, decoded by the code in this folder.

Preparation is transformers' own: `generate` calls `GenerationMixin.generate`, which merges the generation config,
builds the logits processors and stopping criteria, and hands over to the engine here. Anything that the engine cannot
do is refused by name. An exported checkpoint contains this folder as `custom_generate/`, so multitoken need not be
installed:

    model = AutoModelForCausalLM.from_pretrained(NAME, trust_remote_code=True)
    model.generate(**tokenizer("...", return_tensors="pt"), max_new_tokens=200)
"""

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    GenerationMixin,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteriaList,
    StopStringCriteria,
)
from transformers.generation.stopping_criteria import EosTokenCriteria, MaxLengthCriteria
from transformers.generation.utils import GenerateDecoderOnlyOutput

from .arguments import check_arguments, option
from .exported import decoder_of
from .failures import DecodingError
from .loop import Decoder
from .penalties import PresenceFrequencyPenalty
from .per_row import criteria_of_row, of_row
from .policies import POLICY_OPTIONS, Policy, layered_policy, with_trained_k
from .records import Chunk
from .row import Request

OPTIONS = (*POLICY_OPTIONS, "seed", "adaptive")


@dataclass(frozen=True)
class Prepared:
    """A prepared call of `generate`: one request per row, and the form of the answer."""

    requests: list[Request]
    adaptive: bool
    input_ids: Tensor
    config: GenerationConfig
    streamer: Any = None


def generate(
    inputs: Tensor | None = None,
    generation_config: GenerationConfig | None = None,
    logits_processor: LogitsProcessorList | None = None,
    stopping_criteria: StoppingCriteriaList | None = None,
    *,
    model: PreTrainedModel,
    mtp: Mapping[str, Any] | None = None,
    mtp_chunks: list[Chunk] | None = None,
    tokenizer: Any = None,
    streamer: Any = None,
    **arguments: Any,
) -> Any:
    """Takes the arguments of `GenerationMixin.generate` and four of ours, and returns what it returns.

    mtp: how to decode. A dict with `policy` ("exact", "confadapt", "static", "next-token"), `threshold`, `k`,
    `branches`, `seed` (of sampling) and `adaptive` (whether to feed only as many masks as pay off on this machine). Options that it leaves
    out come from `generation_config.json: mtp`. `policy` is "exact" if neither sets it. mtp_chunks: a list to which the
    chunks are appended as they come. presence_penalty, frequency_penalty: see `penalties`.

    Scores and logits have the mask token at -inf. Raises `DecodingError` for anything that is not supported. Raises
    `RowsFailed` if a row fails, after the other rows are done; `mtp_chunks` then has what they wrote.
    """
    decoder = decoder_of(model)
    prepared = prepare(
        decoder,
        inputs,
        generation_config=generation_config,
        logits_processor=logits_processor,
        stopping_criteria=stopping_criteria,
        mtp=mtp,
        tokenizer=tokenizer,
        streamer=streamer,
        arguments=arguments,
    )
    rows: list[list[Chunk]] = [[] for _ in prepared.requests]
    for chunk in run(decoder, prepared):
        rows[chunk.row].append(chunk)
        if mtp_chunks is not None:
            mtp_chunks.append(chunk)
    given = inputs if inputs is not None else arguments.get("input_ids")
    return _output(prepared, rows, given.device if given is not None else model.device)


def run(decoder: Decoder, prepared: Prepared, max_rows: int | None = None) -> Iterator[Chunk]:
    """The chunks as they come, from at most `max_rows` rows at a time. A streamer, if there is one, gets the prompt and
    then each token separately."""
    streamer = prepared.streamer
    if streamer is not None:
        streamer.put(prepared.input_ids.cpu())
    options = {} if max_rows is None else {"max_rows": max_rows}
    for chunk in decoder.run(prepared.requests, adaptive=prepared.adaptive, **options):
        if streamer is not None:
            for token in chunk.token_ids:
                streamer.put(torch.tensor([token]))
        yield chunk
    if streamer is not None:
        streamer.end()


def prepare(
    decoder: Decoder,
    inputs: Tensor | None = None,
    *,
    arguments: Mapping[str, Any],
    generation_config: GenerationConfig | None = None,
    logits_processor: LogitsProcessorList | None = None,
    stopping_criteria: StoppingCriteriaList | None = None,
    tokenizer: Any = None,
    mtp: Mapping[str, Any] | None = None,
    streamer: Any = None,
    policy: Policy | None = None,
    first_row: int = 0,
) -> Prepared:
    """The requests of a call, prepared by transformers itself. `arguments`: the other arguments given to `generate`.

    `policy` overrides `mtp` and the checkpoint. Row numbers, which also key the noise, start at `first_row`.
    """
    model = decoder.model
    configs = generation_config, model.generation_config or GenerationConfig()
    kwargs = check_arguments(arguments, *configs)
    for name in ("input_ids", "attention_mask"):
        if kwargs.get(name) is not None:
            kwargs[name] = kwargs[name].to(model.device)
    inputs = inputs.to(model.device) if inputs is not None else None
    stops = option("stop_strings", kwargs, *configs)
    presence, frequency = (option(f"{name}_penalty", kwargs, *configs) or 0.0 for name in ("presence", "frequency"))
    processors, criteria = LogitsProcessorList(logits_processor or []), StoppingCriteriaList(stopping_criteria or [])
    if presence or frequency:
        prompt = inputs if inputs is not None else kwargs.get("input_ids")
        length = prompt.shape[1] if prompt is not None else 1  # BOS
        processors.append(PresenceFrequencyPenalty(presence, frequency, length))
    for name in ("presence_penalty", "frequency_penalty"):
        kwargs.pop(name, None)
    if stops:
        if tokenizer is None:
            raise DecodingError(f"stop_strings={stops!r} need the tokenizer: call generate(..., tokenizer=tokenizer)")
        criteria.append(StopStringCriteria(tokenizer, stops))
        kwargs["stop_strings"] = None  # generate() would look for a tokenizer, but passes none to a custom loop
    # Not model.generate: from_pretrained may have replaced it with the function in this file.
    transformers_own: Any = vars(GenerationMixin)["generate"]
    loop = functools.partial(_loop, decoder=decoder, given=mtp, policy=policy, streamer=streamer, first_row=first_row)
    try:
        return transformers_own(
            model,
            inputs,
            generation_config=generation_config,
            logits_processor=processors,
            stopping_criteria=criteria,
            custom_generate=loop,
            **kwargs,
        )
    except DecodingError:
        raise
    except ValueError as error:  # transformers' own error for an invalid call
        raise DecodingError(str(error)) from error


def _loop(
    model: PreTrainedModel,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    *,
    decoder: Decoder,
    given: Mapping[str, Any] | None,
    policy: Policy | None,
    streamer: Any,
    first_row: int,
    **model_kwargs: Any,  # naming attention_mask here would hide it from generate() itself
) -> Prepared:
    """Called by `GenerationMixin.generate` in place of its decoding loop, when everything else is prepared."""
    mode = generation_config.get_generation_mode()
    if mode not in ("greedy_search", "sample"):
        raise DecodingError(f"{mode.value} is not supported by multi-token decoding; use greedy search or sampling")
    if streamer is not None and len(input_ids) > 1:
        raise DecodingError(f"a streamer takes one row, found {len(input_ids)}; leave it out")
    for name in ("top_p", "typical_p"):
        share = getattr(generation_config, name)
        if generation_config.do_sample and share is not None and share > 1:  # transformers would ignore it
            raise DecodingError(f"{name} is {share!r}; expected a number above 0 and at most 1")
    chosen, seed, adaptive = _how(generation_config, given, policy, decoder)
    if generation_config.do_sample and seed is None:
        seed = int(torch.randint(2**63 - 1, ()))  # controlled by torch.manual_seed, as in transformers
    # A criterion given by the user replaces generate()'s own of the same kind, so these are the ones that apply.
    ends = [c for c in stopping_criteria if isinstance(c, EosTokenCriteria)]
    lengths = [c.max_length for c in stopping_criteria if isinstance(c, MaxLengthCriteria)]
    requests = _requests(
        decoder,
        input_ids,
        model_kwargs.get("attention_mask"),
        logits_processor,
        StoppingCriteriaList(c for c in stopping_criteria if not isinstance(c, EosTokenCriteria | MaxLengthCriteria)),
        first_row,
        policy=chosen,
        max_new_tokens=max(1, min(lengths) - input_ids.shape[1]),
        eos_ids=frozenset(token for end in ends for token in end.eos_token_id.flatten().tolist()),
        seed=seed if generation_config.do_sample else None,
        keep_scores=bool(generation_config.output_scores or generation_config.output_logits),
    )
    return Prepared(requests, adaptive, input_ids, generation_config, streamer)


def _how(
    config: GenerationConfig, given: Mapping[str, Any] | None, policy: Policy | None, decoder: Decoder
) -> tuple[Policy, int | None, bool]:
    """(policy, seed, adaptive) from the call, or from `generation_config.json: mtp` if the call does not set it."""
    layers = [{"policy": "exact", "adaptive": True}, _checked(getattr(config, "mtp", None)), _checked(given)]
    options: dict[str, Any] = {name: value for layer in layers for name, value in layer.items()}
    if policy is None:
        policy = layered_policy(*({name: layer[name] for name in POLICY_OPTIONS if name in layer} for layer in layers))
    elif not isinstance(policy, Policy):
        raise DecodingError(f"policy is {policy!r}; expected a policy, such as Exact(threshold=0.5)")
    seed, adaptive = options.get("seed"), options["adaptive"]
    if isinstance(seed, bool) or not isinstance(seed, int | None):
        raise DecodingError(f"seed is {seed!r}; expected a whole number")
    if not isinstance(adaptive, bool):
        raise DecodingError(f"adaptive is {adaptive!r}; expected True or False")
    return with_trained_k(policy, decoder.trained_k), seed, adaptive


def _checked(mtp: Mapping[str, Any] | None) -> dict[str, Any]:
    """The options that are given. Raises `DecodingError` for an option that does not exist."""
    if not isinstance(mtp, Mapping | None):
        raise DecodingError(f"mtp is {mtp!r}; expected a dict with some of {', '.join(OPTIONS)}")
    for name in mtp or {}:
        if name not in OPTIONS:
            raise DecodingError(f"mtp has no option {name!r}; expected some of {', '.join(OPTIONS)}")
    return {name: value for name, value in (mtp or {}).items() if value is not None}


def _requests(
    decoder: Decoder,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    processors: LogitsProcessorList,
    criteria: StoppingCriteriaList,
    first_row: int,
    **common: Any,
) -> list[Request]:
    """One request per row, without its padding, which may be on either side. Processors and criteria still see it."""
    requests = []
    for i, ids in enumerate(input_ids.tolist()):
        real = attention_mask[i].tolist() if attention_mask is not None else [1] * len(ids)
        padding = [token for token, there in zip(ids, real, strict=True) if not there]
        requests.append(
            decoder.request(
                [token for token, there in zip(ids, real, strict=True) if there],
                name=f"row {first_row + i}",
                row=first_row + i,
                shown_before=padding,
                processors=of_row(processors, i, len(input_ids), len(padding)),
                criteria=criteria_of_row(criteria, len(input_ids)),
                **common,
            )
        )
    return requests


def _output(prepared: Prepared, rows: list[list[Chunk]], device: torch.device) -> Any:
    """What `generate` returns: the prompts as they were given, the new tokens, and padding after shorter rows."""
    input_ids, config = prepared.input_ids, prepared.config
    new = [[token for chunk in row for token in chunk.token_ids] for row in rows]
    longest = max(map(len, new))
    pad = getattr(config, "_pad_token_tensor", None)
    filler = int(pad) if pad is not None else 0
    tail = torch.tensor([ids + [filler] * (longest - len(ids)) for ids in new], device=input_ids.device)
    sequences = torch.cat([input_ids, tail], 1).to(device)
    if not config.return_dict_in_generate:
        return sequences
    kept = {name: _by_token(rows, name) for name in ("scores", "logits") if getattr(config, f"output_{name}")}
    return GenerateDecoderOnlyOutput(sequences=sequences, **kept)  # pyright: ignore[reportArgumentType]


def _by_token(rows: list[list[Chunk]], name: str) -> tuple[Tensor, ...]:
    """[rows, vocabulary] for each new token; zeros where a row has ended."""
    of_rows = [torch.cat([getattr(chunk, name) for chunk in row]) for row in rows]
    padded = torch.nn.utils.rnn.pad_sequence(of_rows)
    return tuple(padded)
