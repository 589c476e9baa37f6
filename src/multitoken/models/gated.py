"""Load a gated adapter: a small folder that says which model it belongs to.

adapter_config.json         PEFT's format, and the `mtp` block
adapter_model.safetensors   PEFT's names: base_model.model.LAYER.lora_A.weight (and lora_B), and the mask's vector
tokenizer files             the base's, with the mask token reserved
"""

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import PreTrainedModel

from multitoken.decoding.gate import GatedAdapter
from multitoken.errors import ModelError

from .mtp_config import MtpConfig

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MASK_VECTOR = "base_model.model.mask_vector"


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


def read_adapter(model: PreTrainedModel, folder: Path, settings: dict[str, Any], mtp: MtpConfig) -> GatedAdapter:
    """The adapter of a folder, made for `model` and not yet at work. Raises `ModelError` where it does not fit."""
    try:
        state = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{folder}: cannot read {WEIGHTS}: {error}") from error
    layers, rank = settings.get("target_modules"), settings.get("r")
    if not isinstance(layers, list) or type(rank) is not int:
        raise ModelError(f"{folder}: {CONFIG} needs target_modules, a list of layers, and r, a number")
    try:
        adapter = GatedAdapter(model, mask_id=mtp.mask_token_id, rank=rank, layers=layers)
        adapter.load_state_dict(from_peft(state, layers))
    except (AttributeError, KeyError, RuntimeError) as error:
        raise ModelError(f"{folder} does not fit {type(model).__name__}: {error}") from error
    return adapter.eval().requires_grad_(False)


def to_peft(adapter: GatedAdapter, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """The weights under PEFT's names."""
    state = {MASK_VECTOR: adapter.mask_vector}
    for name, update in zip(adapter.names, adapter.updates, strict=True):
        down, up = update.parameters()
        state |= {f"base_model.model.{name}.lora_A.weight": down, f"base_model.model.{name}.lora_B.weight": up}
    return {name: tensor.detach().to(dtype).cpu().contiguous() for name, tensor in state.items()}


def from_peft(state: dict[str, torch.Tensor], layers: list[str]) -> dict[str, torch.Tensor]:
    """Back to the names of `GatedAdapter`. Raises `KeyError` for a missing tensor, `RuntimeError` for one too many."""
    state = dict(state)
    ours = {"mask_vector": state.pop(MASK_VECTOR)}
    for i, name in enumerate(layers):
        ours[f"updates.{i}.down"] = state.pop(f"base_model.model.{name}.lora_A.weight")
        ours[f"updates.{i}.up"] = state.pop(f"base_model.model.{name}.lora_B.weight")
    if state:
        raise RuntimeError(f"{WEIGHTS} holds {next(iter(state))}, which belongs to no layer in {CONFIG}")
    return ours
