"""The entry point that vLLM calls in each of its processes (`vllm.general_plugins`). A checkpoint with an `mtp` block
then needs no flag. Every other model is served as if this plugin were not installed."""

import hashlib
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from multitoken.decoding.failures import DecodingError
from multitoken.errors import ModelError, MultitokenError, UnsupportedModelError, UsageError

from .private import check_version, moved, wrap
from .settings import ADAPTED, KEY, RESOLVED, Settings, is_asked_for, is_enabled, request_policy, resolve

_ROOM = __name__.rsplit(".", 1)[0]
_log = logging.getLogger("vllm.multitoken")  # below vLLM's own, so that its handler prints it


def register() -> None:
    """Hook this plugin into vLLM's start-up and into its processing of requests."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.input_processor import InputProcessor

    wrap(EngineArgs, "create_engine_config", _create_engine_config)
    wrap(InputProcessor, "process_inputs", _process_inputs)


def settings_of(vllm_config: Any) -> Settings:
    """The settings of a server, in any of its processes."""
    return Settings.from_dict(vllm_config.additional_config[RESOLVED])


def _create_engine_config(original: Any, args: Any, *more: Any, **named: Any) -> Any:
    additional = args.additional_config
    if not is_enabled(additional) or (isinstance(additional, dict) and RESOLVED in additional):
        return original(args, *more, **named)
    settings = _read(args, additional)
    if settings is None:
        return original(args, *more, **named)
    check_version()
    if wrong := moved():
        raise MultitokenError("this vLLM differs from what multitoken expects: " + "; ".join(wrong))
    _refuse(args, settings)
    if settings.adapter is not None and not _is_cpu():
        args.enforce_eager = True  # CUDA graphs cannot hold operations that differ from step to step
    args.additional_config = {**(additional or {}), RESOLVED: settings.to_dict()}
    if settings.adapter is not None:  # vLLM caches compiled code by its options: they must name the adapted layers
        args.additional_config[ADAPTED] = _digest(settings.adapter)
    args.speculative_config = {
        "method": "custom_class",
        "model": f"{_ROOM}.proposer.Proposer",
        "num_speculative_tokens": settings.drafts,
    }
    args.worker_cls = f"{_ROOM}.worker.Worker"
    if not settings.lossless:
        args.scheduler_cls = f"{_ROOM}.scheduler.FinalMasksScheduler"
    config = original(args, *more, **named)
    if config.model_config.has_inner_state:
        raise UnsupportedModelError(
            f"{args.model} has recurrent layers, and in vLLM masks would write to their states; serve it with "
            f'`multitoken serve`, or as an ordinary model with --additional-config \'{{"mtp": {{"enabled": false}}}}\''
        )
    _check_budget(config.scheduler_config, settings)
    return config


def _digest(adapter: str) -> str:
    from multitoken.decoding.gate_file import CONFIG

    return hashlib.sha256((Path(adapter) / CONFIG).read_bytes()).hexdigest()


def _is_cpu() -> bool:
    from vllm.platforms import current_platform

    return current_platform.is_cpu()


def _read(args: Any, additional: Any) -> Settings | None:
    """The settings of the checkpoint; None if it is to be served as an ordinary model."""
    from vllm.transformers_utils.config import get_config, try_get_generation_config

    from multitoken.models.heads import find_head

    # The same places and options as vLLM's own, or a model that it can serve would fail here.
    source = args.hf_config_path or args.model, args.trust_remote_code, args.revision, args.code_revision
    try:
        config = get_config(*source, args.config_format, token=args.hf_token)
    except Exception as error:
        if is_asked_for(additional):
            raise
        # vLLM will report what is wrong, or it reads the model in another way, such as from object storage.
        reason = str(error).partition("\n")[0]
        _log.warning("multitoken cannot read the config of %s and leaves it to vLLM: %s", args.model, reason)
        return None
    block = getattr(config, KEY, None)
    if block is None:
        if is_asked_for(additional):
            raise UsageError(
                f"additional_config contains mtp, but config.json of {args.model} has no mtp block: the model was not "
                "adapted to write several tokens per step; adapt it first, or leave mtp out"
            )
        return None
    if args.speculative_config is not None:
        if is_asked_for(additional):
            raise UsageError(
                "additional_config asks for multi-token decoding, and speculative_config for vLLM's own speculative "
                "decoding; give one of them"
            )
        return None
    generation = try_get_generation_config(*source, args.config_format, args.hf_token)
    settings = resolve(block, getattr(generation, KEY, None), additional, config.get_text_config().vocab_size)
    if version := block.get("draft_head", 0):
        settings = replace(settings, head=find_head(args.model, version, args.revision, args.hf_token))
    return replace(settings, adapter=_adapter(args)) if block["method"] == "gated" else settings


def _adapter(args: Any) -> str:
    """The folder of a gated checkpoint's adapter, fetched from the Hub if necessary."""
    from transformers.utils.hub import cached_file

    from multitoken.decoding.exported import ADAPTER_FOLDER
    from multitoken.decoding.gate_file import CONFIG, WEIGHTS

    try:
        files = [
            cached_file(args.model, f"{ADAPTER_FOLDER}/{name}", revision=args.revision, token=args.hf_token)
            for name in (CONFIG, WEIGHTS)
        ]
    except OSError as error:
        raise ModelError(
            f"{args.model} is a gated checkpoint without its adapter in {ADAPTER_FOLDER}/; write a complete one with "
            "`multitoken export`"
        ) from error
    return str(Path(str(files[0])).parent)


def _refuse(args: Any, settings: Settings) -> None:
    """Refuse options that multi-token decoding cannot be combined with. The error names them; none is ignored."""
    from vllm.engine.arg_utils import EngineArgs

    for name in ("worker_cls", "scheduler_cls"):
        if getattr(args, name, None) not in (None, getattr(EngineArgs, name)):
            raise UsageError(f"{name} is {getattr(args, name)!r}, but multi-token decoding needs its own; leave it out")
    if args.pipeline_parallel_size > 1:
        raise UsageError(
            f"pipeline_parallel_size is {args.pipeline_parallel_size}; multi-token decoding needs 1: use "
            "tensor_parallel_size"
        )

    if settings.adapter is None:
        return
    if args.enable_lora:
        raise UsageError("enable_lora is not supported with a gated checkpoint yet; leave it out")


def _check_budget(scheduler: Any, settings: Settings) -> None:
    """A step must have room for one request's drafts and masks, or masks would never be fed."""
    width = settings.drafts + 1
    if scheduler.max_num_batched_tokens < width:
        raise UsageError(
            f"max_num_batched_tokens is {scheduler.max_num_batched_tokens}, but a step of one request with k = "
            f"{settings.k} feeds up to {width} tokens; raise it, preferably to max_num_seqs * {width} = "
            f'{scheduler.max_num_seqs * width}, or lower k with --additional-config \'{{"mtp": {{"k": ...}}}}\''
        )


def _process_inputs(original: Any, processor: Any, *args: Any, **named: Any) -> Any:
    """Refuse a request that cannot be decoded as it asks, and only that request. Over HTTP this is a 400."""
    request = original(processor, *args, **named)
    additional = processor.vllm_config.additional_config
    if not isinstance(additional, dict) or RESOLVED not in additional or request.sampling_params is None:
        return request
    from vllm.exceptions import VLLMValidationError

    settings, params = settings_of(processor.vllm_config), request.sampling_params
    try:
        request_policy(settings, params.extra_args)
    except DecodingError as error:
        raise VLLMValidationError(f"extra_args: {error}", parameter="extra_args") from error
    if settings.mask_id in (request.prompt_token_ids or ()):
        raise VLLMValidationError(
            f"the prompt contains the mask token (id {settings.mask_id}), which only the server may feed; remove it",
            parameter="prompt",
        )
    for name in ("thinking_token_budget", "logprob_token_ids"):
        if getattr(params, name, None) is not None:
            raise VLLMValidationError(
                f"{name} is not supported with multi-token decoding; leave it out", parameter=name
            )
    return request
