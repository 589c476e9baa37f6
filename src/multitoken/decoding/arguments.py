"""Which arguments of `generate` multi-token decoding accepts. Others are refused by name. None is silently ignored."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from transformers import GenerationConfig

from .failures import DecodingError

OURS = ("mtp", "mtp_chunks", "presence_penalty", "frequency_penalty")
_TAKEN = (
    *OURS,
    "inputs",
    "input_ids",
    "attention_mask",
    "generation_config",
    "logits_processor",
    "stopping_criteria",
    "prefix_allowed_tokens_fn",
    "streamer",
    "tokenizer",
)
# Options of a generation config, each with the values that mean plain decoding; None always does. These options change
# the output ...
_WRITE_OTHERWISE: dict[str, tuple[Any, ...]] = {
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "constraints": (),
    "force_words_ids": (),
    "penalty_alpha": (0.0,),
    "dola_layers": (),
    "guidance_scale": (1.0,),
    "token_healing": (False,),
    "prompt_lookup_num_tokens": (),
    "assistant_early_exit": (),
    "use_mtp": (False,),
    "is_assistant": (False,),
}
# ... and these do not, or only together with one of the options above. A checkpoint may set them, but a call may not.
_HAVE_NO_MEANING: dict[str, tuple[Any, ...]] = {
    "use_cache": (True,),
    "cache_implementation": ("dynamic", "hybrid"),
    "cache_config": (),
    "max_cache_len": (),
    "compile_config": (),
    "prefill_chunk_size": (),
    "continuous_batching_config": (),
    "output_attentions": (False,),
    "output_hidden_states": (False,),
    "low_memory": (False,),
    "early_stopping": (False,),
    "length_penalty": (1.0,),
    "diversity_penalty": (0.0,),
    "num_assistant_tokens": (),
    "num_assistant_tokens_schedule": (),
    "assistant_confidence_threshold": (),
    "assistant_lookbehind": (),
    "target_lookbehind": (),
    "assistant_ensemble_weight": (),
    "max_matching_ngram_size": (),
    "speculation_type": (),
}


def check_arguments(
    arguments: Mapping[str, Any], given: GenerationConfig | None, of_checkpoint: GenerationConfig
) -> dict[str, Any]:
    """The arguments to pass on.

    Raises `DecodingError` for an unsupported or unknown argument, whether it is in the call, in the generation config
    given with the call, or in the checkpoint's generation config.
    """
    options = {name for name in vars(GenerationConfig()) if not name.startswith("_")} - {"transformers_version"}
    kept = {}
    for name, value in arguments.items():
        if name in options or name in _TAKEN:
            kept[name] = value
        elif not (value is None or name == "trust_remote_code" or (name == "synced_gpus" and value is False)):
            near = get_close_matches(name, [*options, *_TAKEN], n=1)
            hint = f"did you mean {near[0]}?" if near else "leave it out"
            raise DecodingError(f"the argument {name} is not supported by multi-token decoding; {hint}")
    for table, configs in ((_WRITE_OTHERWISE, (given, of_checkpoint)), (_HAVE_NO_MEANING, (given,))):
        for name, plain in table.items():
            value = option(name, kept, *configs)
            if value is None or value in plain:
                continue
            mend = "leave it out"
            if option(name, kept, given) is None:
                mend = f"the checkpoint's generation config sets it: pass {name}={plain[0] if plain else None}"
            raise DecodingError(f"{name}={value!r} is not supported by multi-token decoding; {mend}")
    temperature = option("temperature", kept, given, of_checkpoint)
    if temperature is not None and not temperature > 0 and option("do_sample", kept, given, of_checkpoint):
        raise DecodingError(f"temperature is {temperature!r}; expected a number above 0 (leave it out for greedy)")
    return kept


def option(name: str, arguments: Mapping[str, Any], *configs: GenerationConfig | None) -> Any:
    """The value of an option: the call's argument, even if None, or else the value in the first config that sets it."""
    if name in arguments:
        return arguments[name]
    return next((v for config in configs if (v := getattr(config, name, None)) is not None), None)


def check_length(max_new_tokens: object) -> None:
    """Raises `DecodingError` if `max_new_tokens` is not a whole number of at least 1."""
    if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, int) or max_new_tokens < 1:
        raise DecodingError(f"max_new_tokens is {max_new_tokens!r}; expected a whole number of at least 1")
