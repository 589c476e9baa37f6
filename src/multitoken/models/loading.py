"""Load a causal language model: refused from its config, before any weight is read, where it would decode wrongly."""

import hashlib
import logging
from dataclasses import dataclass
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

from multitoken.decoding.draft_head import DraftHead
from multitoken.decoding.gate import GatedAdapter
from multitoken.decoding.head_file import read_head
from multitoken.decoding.records import DecodingError
from multitoken.errors import ModelError, UnsupportedModelError, UsageError

from .gated import fetch_adapter, find_base, is_hub_name, read_adapter, read_adapter_config, read_own_adapter
from .heads import find_head
from .mtp_config import MtpConfig
from .quantize import quantize_weights

logger = logging.getLogger(__name__)

ATTENTION = ("sdpa", "eager", "flex_attention")  # those that take a block mask
_OTHER_SENSES = ("vision_config", "audio_config", "audio_encoder_config", "image_config", "speech_config")


@dataclass(frozen=True)
class Loaded:
    """A model in eval mode with what belongs to it. `mtp` is None for an ordinary model; `name` is never a path;
    `adapter` is the gated adapter at work in it, if one is; `head` the draft head, if it has one."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    mtp: MtpConfig | None
    name: str
    adapter: GatedAdapter | None = None
    head: DraftHead | None = None


def load_causal_lm(
    name_or_path: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    trust_remote_code: bool = False,
    attn_implementation: str = "sdpa",
    base: str | Path | None = None,
    quantize: str = "none",
) -> Loaded:
    """The model and tokenizer of a folder or of a hub name; for a gated adapter, those of its base with the adapter in
    action. `base` is where that lies, if not where the adapter says. quantize="int8" holds the linear layers' weights in
    8 bits (torchao, weight-only), those of an adapter's base as well.

    Raises UsageError for a device or attention that cannot be, UnsupportedModelError for a kind of model that would
    decode wrongly, and ModelError for one that is missing, incomplete or broken.
    """
    if attn_implementation not in ATTENTION:
        raise UsageError(
            f"attn_implementation is {attn_implementation!r}; expected one of {', '.join(ATTENTION)} "
            "(flash kernels take no block mask)"
        )
    place = _device(device)
    if (folder := fetch_adapter(name_or_path)) is not None:
        how = {"dtype": dtype, "device": device, "trust_remote_code": trust_remote_code}
        name = folder.resolve().name if folder == Path(name_or_path) else str(name_or_path)
        return _load_gated(folder, name, base, quantize, **how, attn_implementation=attn_implementation)
    if base is not None:
        raise UsageError(f"base is {str(base)!r}, but {name_or_path} is no adapter; leave base out")
    source, name = _locate(name_or_path)
    config = _read_config(source, trust_remote_code)
    refuse_unsupported(config, name)
    mtp = MtpConfig.from_hf(config)
    tokenizer = _read_tokenizer(source, trust_remote_code)
    if mtp is not None and (found := tokenizer.convert_tokens_to_ids(mtp.mask_token)) != mtp.mask_token_id:
        raise ModelError(
            f"{name}: the tokenizer gives {mtp.mask_token!r} the id {found}, config.json: mtp.mask_token_id is "
            f"{mtp.mask_token_id}; the tokenizer files are not those the checkpoint was saved with"
        )
    attention = _attention(config, source, attn_implementation)
    model: Any = _read_weights(source, config, dtype, trust_remote_code, attention)
    model.to(place).eval()
    adapter = None
    if mtp is not None and mtp.method == "gated":
        if (found := weight_hash(model)) != mtp.base_hash:
            raise ModelError(
                f"{name} holds an adapter that was made for the weights {mtp.base_hash[:19]}, but its own are "
                f"{found[:19]}; export the checkpoint again"
            )
        adapter = read_own_adapter(model, source, mtp)
    quantize_weights(model, quantize)  # the hash is of the weights as they are published
    if adapter is not None:
        adapter.attach_for_decoding(model)
    return Loaded(model, tokenizer, mtp, name, adapter, _read_head(model, source, mtp))


def _load_gated(folder: Path, name: str, base: str | Path | None, quantize: str, **how: Any) -> Loaded:
    """The base, checked to be the very weights that the adapter was made for, with the adapter in action."""
    settings, mtp = read_adapter_config(folder)
    source = base or find_base(folder, settings)
    try:
        loaded = load_causal_lm(source, **how)
    except UnsupportedModelError:
        raise
    except ModelError as error:
        raise ModelError(
            f"{folder} is an adapter of {mtp.base_name}: {error}. Give its place as base (--base)"
        ) from error
    if loaded.adapter is not None:
        raise ModelError(f"{source} holds an adapter of its own; load it as it is, or give the model it was made from")
    if (found := weight_hash(loaded.model)) != mtp.base_hash:
        raise ModelError(
            f"{folder} was made for {mtp.base_name} with the weights {mtp.base_hash[:19]}, but those of {source} are "
            f"{found[:19]}; give the model it was made from as base (--base)"
        )
    quantize_weights(loaded.model, quantize)
    adapter = read_adapter(loaded.model, folder, mtp)
    adapter.attach_for_decoding(loaded.model)
    tokenizer = _read_tokenizer(str(folder), trust_remote_code=False)
    if tokenizer.convert_tokens_to_ids(mtp.mask_token) != mtp.mask_token_id:
        raise ModelError(f"{folder}: the tokenizer does not give {mtp.mask_token!r} the id {mtp.mask_token_id}")
    return Loaded(loaded.model, tokenizer, mtp, name, adapter, _read_head(loaded.model, str(folder), mtp))


def _read_head(model: PreTrainedModel, source: str, mtp: MtpConfig | None) -> DraftHead | None:
    """The draft head of a folder or a hub name, if the `mtp` block says that there is one. Raises `ModelError`."""
    if mtp is None or not mtp.draft_head:
        return None
    file = find_head(source, mtp.draft_head)
    try:
        return read_head(model, file, mtp.draft_head)
    except DecodingError as error:
        raise ModelError(str(error)) from error


def load_config(name_or_path: str | Path, *, trust_remote_code: bool = False) -> tuple[PreTrainedConfig, str]:
    """The config of a folder or hub name, no weights needed, and the name to speak of it. Raises as `load_causal_lm` does."""
    folder = Path(str(name_or_path)).expanduser()
    source = str(folder) if folder.exists() else str(name_or_path)
    config = _read_config(source, trust_remote_code)
    name = folder.resolve().name if folder.exists() else source
    refuse_unsupported(config, name)
    return config, name


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
            f"{name} is {architecture}, which wraps a language model ({inner}) in another that sees or hears; text-only "
            "checkpoints are supported: use or export its language model"
        )
    if kind == "minimax" and getattr(config, "sliding_window", None):
        raise UnsupportedModelError(
            f"{name} is {architecture} with a sliding window, which its masks do not tell apart from full attention; those "
            "without one are supported"
        )
    remote = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING and not remote:
        raise UnsupportedModelError(
            f"{name} is {architecture}: transformers knows no causal language model of {kind!r}"
        )
    if kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False):
        raise UnsupportedModelError(
            f"{name} is {architecture}, an encoder whose tokens see their future; expected a causal language model"
        )


def weight_hash(model: PreTrainedModel) -> str:
    """`sha256:` and the hex digest of every parameter's name, shape and values in bf16, by name, tied ones once.

    In bf16, because float32 and bf16 files are then told apart from others but not from themselves, in whichever of the
    two types they are loaded.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        # One parameter at a time: no second copy of the model.
        values = parameter.detach().cpu()
        values = values.bfloat16() if values.is_floating_point() else values
        digest.update(f"{name} {list(values.shape)} {values.dtype}\n".encode())
        digest.update(values.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return f"sha256:{digest.hexdigest()}"


def _device(device: str | torch.device) -> torch.device:
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise UsageError(f"device is {device!r}; expected 'cpu', 'cuda' or 'cuda:1'") from error
    if place.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"device is {str(device)!r}, but torch sees no GPU; use 'cpu'")
    return place


def _locate(name_or_path: str | Path) -> tuple[str, str]:
    """What transformers shall open, and the name to speak of it: a folder's own name, or the hub's."""
    text = str(name_or_path)
    path = Path(text).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"{text} has no config.json; expected the folder of a Hugging Face model")
        weights = [*path.glob("*.safetensors"), *path.glob("*.safetensors.index.json")]
        if not weights:
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
    return text, text


def _read_config(source: str, trust_remote_code: bool) -> PreTrainedConfig:
    try:
        return AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
    except Exception as error:  # transformers raises many kinds: OSError, ValueError, KeyError, strict dataclass errors
        raise _unreadable(source, "config.json", error) from error


def _read_tokenizer(source: str, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise _unreadable(source, "the tokenizer", error) from error


def _read_weights(
    source: str, config: PreTrainedConfig, dtype: torch.dtype, trust_remote_code: bool, attention: str
) -> PreTrainedModel:
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source,
            config=config,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            attn_implementation=attention,
            use_safetensors=True,
            output_loading_info=True,
        )
    except Exception as error:
        raise _unreadable(source, "the weights", error) from error
    model, report = loaded
    # transformers only warns of these, and leaves random numbers in their place.
    if missing := sorted(report["missing_keys"]):
        raise ModelError(
            f"{source}: the weights lack {', '.join(missing[:3])}{' ...' if len(missing) > 3 else ''} "
            f"({len(missing)} in all); expected every weight of {type(model).__name__}: copy the folder again"
        )
    return model


def _unreadable(source: str, what: str, error: Exception) -> ModelError:
    reason = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    if Path(source).is_dir():
        return ModelError(f"{source}: cannot read {what}: {reason}")
    return ModelError(
        f"cannot load {what} of {source!r} from the Hugging Face hub: {reason} (it is no folder here either; check the "
        "name and the network, or download it and give its folder)"
    )


def _attention(config: PreTrainedConfig, source: str, wanted: str) -> str:
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
