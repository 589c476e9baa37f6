"""Load a gated adapter: a small folder that says which model it belongs to.

adapter_config.json         PEFT's format, and the `mtp` block
adapter_model.safetensors   PEFT's names: base_model.model.LAYER.lora_A.weight (and lora_B), and the mask's vector
tokenizer files             the base's, with the mask token reserved
"""

import json
import os
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from multitoken.decoding.gate import GatedAdapter
from multitoken.decoding.gate_file import CONFIG, WEIGHTS, read_gate
from multitoken.decoding.records import DecodingError
from multitoken.errors import ModelError

from .mtp_config import MtpConfig


def is_adapter(path: str | Path) -> bool:
    """Whether `path` is a folder that holds an adapter."""
    return (Path(path) / CONFIG).is_file()


def read_adapter_config(folder: Path) -> tuple[dict[str, Any], MtpConfig]:
    """The settings, and their `mtp` block. Raises `ModelError` for an adapter that is not a gated one."""
    try:
        settings = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder}: cannot read {CONFIG}: {error}") from error
    block = settings.get("mtp") if isinstance(settings, dict) else None
    if not isinstance(block, dict):
        raise ModelError(
            f"{folder} is an adapter without an mtp block in {CONFIG}; expected one that multitoken wrote. Merge an "
            "ordinary LoRA adapter into its model first (PEFT: merge_and_unload)"
        )
    return settings, MtpConfig.from_block(block, CONFIG)


def find_base(folder: Path, settings: dict[str, Any]) -> str:
    """The base that the adapter names: a folder, relative to the adapter's own, or a hub name."""
    name = str(settings.get("base_model_name_or_path") or "")
    beside = folder / name
    return os.path.normpath(beside) if name and beside.is_dir() else name


def read_adapter(model: PreTrainedModel, folder: Path, mtp: MtpConfig) -> GatedAdapter:
    """The adapter of a folder, made for `model` and not yet at work. Raises `ModelError` where it does not fit."""
    try:
        return read_gate(model, folder / CONFIG, folder / WEIGHTS, mtp.mask_token_id)
    except DecodingError as error:
        raise ModelError(str(error)) from error
