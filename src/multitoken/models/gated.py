"""Load a gated adapter: a small folder that names the model it belongs to.

adapter_config.json         PEFT's format, and the `mtp` block
adapter_model.safetensors   PEFT's names: base_model.model.LAYER.lora_A.weight (and lora_B), and the mask token's vector
generation_config.json      the default policy and its options as `mtp`, if the adaptation found them
tokenizer files             the base's, with the mask token reserved

An exported checkpoint holds its base as well. The first two files are then in its folder `mtp_adapter/`, and the `mtp` block is
in `config.json` too.
"""

import json
import os
import re
from pathlib import Path
from typing import Any

from huggingface_hub import constants, get_session, is_offline_mode, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from transformers import PreTrainedModel
from transformers.utils.hub import cached_file

from multitoken.decoding.exported import ADAPTER_FOLDER
from multitoken.decoding.failures import DecodingError
from multitoken.decoding.gate import GatedAdapter
from multitoken.decoding.gate_file import CONFIG, WEIGHTS, read_gate
from multitoken.decoding.head_file import HEAD_WEIGHTS
from multitoken.errors import ModelError

from .mtp_config import MtpConfig
from .stored_policy import take_over

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
# For `cached_file`: return None, without an error, for a file that does not exist or cannot be fetched.
QUIET = {f"_raise_exceptions_for_{what}": False for what in ("missing_entries", "connection_errors", "gated_repo")}
_FILES = ("*.json", "*.jinja", "*.model", "*.txt", WEIGHTS, HEAD_WEIGHTS)


def is_hub_name(text: str) -> bool:
    """Whether `text` could be a name on the Hugging Face Hub and is not a local path."""
    return bool(_HUB_NAME.fullmatch(text)) and not text.startswith(".") and not Path(text).exists()


def can_be_found(hub_name: str) -> bool:
    """Whether the cache knows this name, or the Hub answers. The hub's client tries each file again for half a minute, and the
    name is often a mistyped folder: so the Hub is asked once before."""
    try:
        if is_offline_mode() or any(try_to_load_from_cache(hub_name, file) for file in (CONFIG, "config.json")):
            return True
        get_session().head(constants.ENDPOINT, timeout=5)
    except HFValidationError:  # not a name: the client says why
        return True
    except Exception:  # the hub's transport raises many kinds of errors
        return False
    return True


def is_adapter(path: str | Path) -> bool:
    """Whether `path` is a folder that holds an adapter without a model."""
    return (Path(path) / CONFIG).is_file()


def fetch_adapter(name_or_path: str | Path) -> Path | None:
    """The folder of an adapter, fetched if it is on the hub; None for anything else."""
    if is_adapter(place := Path(name_or_path).expanduser()):
        return place
    if isinstance(name_or_path, Path) or not is_hub_name(name_or_path) or not can_be_found(name_or_path):
        return None
    try:
        found = cached_file(name_or_path, CONFIG, **QUIET)
    except OSError:  # no such name: the next step, which reads config.json, gives a better message
        return None
    if found is None:
        return None
    try:
        return Path(snapshot_download(name_or_path, allow_patterns=list(_FILES)))
    except Exception as error:  # the hub's client and its transport raise many kinds of errors
        raise ModelError(f"cannot load the adapter {name_or_path!r} from the Hugging Face hub: {error}") from error


def read_own_adapter(model: PreTrainedModel, source: str, mtp: MtpConfig) -> GatedAdapter:
    """Read the adapter that an exported checkpoint (a folder or a hub name) holds next to its base. Raises `ModelError`."""
    try:
        config, weights = (cached_file(source, f"{ADAPTER_FOLDER}/{name}") for name in (CONFIG, WEIGHTS))
    except OSError as error:
        raise ModelError(
            f"{source}: config.json says that it was adapted by the gated method, but {ADAPTER_FOLDER}/ does not hold "
            f"{CONFIG} and {WEIGHTS}; export the checkpoint again"
        ) from error
    assert config is not None and weights is not None, "cached_file raises where there is none"
    return _read(model, config, weights, mtp)


def read_adapter_settings(folder: Path) -> dict[str, Any]:
    """The contents of `adapter_config.json`. Raises `ModelError` if it cannot be read."""
    try:
        settings = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder}: cannot read {CONFIG}: {error}") from error
    if not isinstance(settings, dict):
        raise ModelError(f"{folder}: {CONFIG} holds a {type(settings).__name__}; expected an object")
    return settings


def read_adapter_config(folder: Path) -> tuple[dict[str, Any], MtpConfig]:
    """The settings and their `mtp` block. Raises `ModelError` for an adapter that is not a gated one."""
    settings = read_adapter_settings(folder)
    block = settings.get("mtp")
    if not isinstance(block, dict):
        raise ModelError(
            f"{folder} is an adapter without an mtp block in {CONFIG}; expected one that multitoken wrote. An UNO draft adapter "
            "needs uno=True, or `multitoken adopt` first; merge an ordinary LoRA adapter into its model first (PEFT: merge_and_unload)"
        )
    return settings, MtpConfig.from_block(block, CONFIG)


def read_uno_settings(folder: Path) -> dict[str, Any]:
    """The settings of an UNO adapter. Raises `ModelError` for an adapter that multitoken wrote, and for one that is not a plain
    LoRA adapter."""
    settings = read_adapter_settings(folder)
    if "mtp" in settings:
        raise ModelError(f"{folder} is a multitoken adapter already, and not an UNO adapter: use it as it is")
    if str(settings.get("peft_type", "")).upper() != "LORA":
        raise ModelError(f"{folder}: peft_type is {settings.get('peft_type')!r} in {CONFIG}; expected LORA")
    return settings


def find_base(folder: Path, settings: dict[str, Any]) -> str:
    """The base that the adapter names: a folder, relative to the adapter's own, or a hub name."""
    name = str(settings.get("base_model_name_or_path") or "")
    beside = folder / name
    return os.path.normpath(beside) if name and beside.is_dir() else name


def read_adapter(model: PreTrainedModel, folder: Path, mtp: MtpConfig) -> GatedAdapter:
    """Read the adapter of a folder for `model`, without attaching it. The folder's default policy is copied to the model's
    generation config. Raises `ModelError` if the adapter does not fit."""
    adapter = _read(model, folder / CONFIG, folder / WEIGHTS, mtp)
    take_over(model, folder)
    return adapter


def _read(model: PreTrainedModel, config: str | Path, weights: str | Path, mtp: MtpConfig) -> GatedAdapter:
    try:
        return read_gate(model, config, weights, mtp.mask_token_id)
    except DecodingError as error:
        raise ModelError(str(error)) from error
