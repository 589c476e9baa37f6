"""Read the parts of a checkpoint: its location, config, tokenizer and weights. Problems are reported with our own messages."""

import json
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
)
from transformers.utils import logging as transformers_logging

from multitoken.errors import ModelError, UnsupportedModelError

from .gated import can_be_found, is_hub_name

logger = logging.getLogger(__name__)

_OTHER_SENSES = ("vision_config", "audio_config", "audio_encoder_config", "image_config", "speech_config")


def refuse_unsupported(config: PreTrainedConfig, name: str) -> None:
    """Raise UnsupportedModelError, by class name, for a model that is not a text-only decoder."""
    kind = config.model_type
    architecture = (config.architectures or [kind])[0]
    if config.is_encoder_decoder:
        raise UnsupportedModelError(
            f"{name} is {architecture}, an encoder-decoder model; expected a decoder-only causal language model"
        )
    if (
        kind in MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES
        or architecture.endswith("ForConditionalGeneration")
        or any(getattr(config, part, None) is not None for part in _OTHER_SENSES)
    ):
        text = config.get_text_config()
        known: Any = MODEL_FOR_CAUSAL_LM_MAPPING
        inner = known[type(text)].__name__ if type(text) in known else "of its own"
        raise UnsupportedModelError(
            f"{name} is {architecture}, which wraps a language model ({inner}) in a model for images or audio; only text-only "
            "checkpoints are supported: use or export its language model"
        )
    if kind == "minimax" and getattr(config, "sliding_window", None):
        raise UnsupportedModelError(
            f"{name} is {architecture} with a sliding window, which its masks do not distinguish from full attention; models "
            "of this kind without one are supported"
        )
    remote = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING and not remote:
        raise UnsupportedModelError(
            f"{name} is {architecture}: transformers has no causal language model of type {kind!r}"
        )
    if kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False):
        raise UnsupportedModelError(
            f"{name} is {architecture}, an encoder whose tokens see their future; expected a causal language model"
        )


def locate(name_or_path: str | Path, *, weights: bool = True) -> tuple[str, str]:
    """The path or hub name for transformers to open, and the name for messages: the folder's own name, or the hub name.
    weights=False: only the config is needed."""
    text = str(name_or_path)
    path = Path(text).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"{text} has no config.json; expected the folder of a Hugging Face model")
        try:
            json.loads((path / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ModelError(f"{text}: cannot read config.json: {error}; copy the folder again") from error
        if weights and not [*path.glob("*.safetensors"), *path.glob("*.safetensors.index.json")]:
            old = next(iter(sorted([*path.glob("*.bin"), *path.glob("*.pt"), *path.glob("*.pth")])), None)
            found = f"found {old.name}, which can run code when it is read" if old else "found no weights"
            raise ModelError(
                f"{text} has no *.safetensors file ({found}); save the model with save_pretrained of transformers 5"
            )
        return str(path), path.resolve().name
    if path.exists():
        raise ModelError(f"{text} is a file; expected the folder of a Hugging Face model")
    if isinstance(name_or_path, Path) or not is_hub_name(text):
        raise ModelError(
            f"{text} does not exist; expected a folder with config.json, or a hub name such as Qwen/Qwen3-0.6B"
        )
    if not can_be_found(text):
        raise ModelError(
            f"there is no folder {text!r}, and the Hugging Face hub, where it could be a model's name, cannot be reached; check "
            "the name and the network, or download the model and give its folder"
        )
    return text, text


def read_config(source: str, trust_remote_code: bool) -> PreTrainedConfig:
    try:
        return AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
    except Exception as error:  # transformers raises many kinds: OSError, ValueError, KeyError, strict dataclass errors
        raise _unreadable(source, "config.json", error) from error


def read_tokenizer(source: str, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise _unreadable(source, "the tokenizer", error) from error


def read_weights(
    source: str,
    config: PreTrainedConfig,
    dtype: torch.dtype,
    trust_remote_code: bool,
    attention: str,
    options: Mapping[str, Any],
) -> PreTrainedModel:
    """Read the model in eval mode, in that type and on its device. options: those of from_pretrained for placement and
    quantization."""
    try:
        with _bars_on_terminals_only():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                source,
                config=config,
                dtype=dtype,
                trust_remote_code=trust_remote_code,
                attn_implementation=attention,
                use_safetensors=True,
                output_loading_info=True,
                **options,
            )
    except Exception as error:
        raise _unreadable(source, "the weights", error) from error
    model, report = loaded
    # transformers only warns about these, and leaves random numbers in their place.
    if missing := sorted(report["missing_keys"]):
        raise ModelError(
            f"{source}: the weights lack {', '.join(missing[:3])}{' ...' if len(missing) > 3 else ''} "
            f"({len(missing)} in all); expected every weight of {type(model).__name__}: copy the folder again"
        )
    return model.eval()


@contextmanager
def _bars_on_terminals_only() -> Iterator[None]:
    """Hide transformers' progress bars in logs and pipes, where it draws them too."""
    quiet = transformers_logging.is_progress_bar_enabled() and not sys.stderr.isatty()
    if quiet:
        transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if quiet:
            transformers_logging.enable_progress_bar()


def _unreadable(source: str, what: str, error: Exception) -> ModelError:
    reason = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    if Path(source).is_dir():
        return ModelError(f"{source}: cannot read {what}: {reason}")
    return ModelError(
        f"cannot load {what} of {source!r} from the Hugging Face hub: {reason} (there is no such local folder either; check "
        "the name and the network, or download it and give its folder)"
    )


def choose_attention(config: PreTrainedConfig, source: str, wanted: str) -> str:
    """`wanted`, or "eager" for the few model classes that say they do not support sdpa."""
    cls: Any
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        cls = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    else:
        cls = get_class_from_dynamic_module(config.auto_map["AutoModelForCausalLM"], source)
    if wanted == "sdpa" and not getattr(cls, "_supports_sdpa", False):
        logger.warning("%s does not support sdpa attention: using eager attention", cls.__name__)
        return "eager"
    return wanted
