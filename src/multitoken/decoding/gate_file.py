"""A gate's files: PEFT's format, two matrices a layer under PEFT's names, and the mask's own vector."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_utils import load_state_dict

from .failures import DecodingError
from .gate import GatedAdapter

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MASK_VECTOR = "base_model.model.mask_vector"


def read_gate(model: PreTrainedModel, config: str | Path, weights: str | Path, mask_id: int) -> GatedAdapter:
    """The gate in these two files, made for `model` and not yet at work. Raises `DecodingError` where it does not fit."""
    try:
        settings = json.loads(Path(config).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DecodingError(f"cannot read {config}: {error}") from error
    try:
        state = load_state_dict(str(weights))
    except Exception as error:  # OSError, and safetensors' own kind
        raise DecodingError(f"cannot read {weights}: {error}") from error
    layers, rank = settings.get("target_modules"), settings.get("r")
    if not isinstance(layers, list) or type(rank) is not int:
        raise DecodingError(f"{config} needs target_modules, a list of layers, and r, a number")
    try:
        adapter = GatedAdapter(model, mask_id=mask_id, rank=rank, layers=layers)
        adapter.load_state_dict(from_peft(state, layers))
    except (AttributeError, KeyError, RuntimeError) as error:
        raise DecodingError(f"{Path(weights).parent} does not fit {type(model).__name__}: {error}") from error
    return adapter.eval().requires_grad_(False)


def peft_settings(adapter: GatedAdapter, base: str) -> dict[str, Any]:
    """What `adapter_config.json` says. `base`: where the model lies that it belongs to."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": adapter.rank,
        "lora_alpha": adapter.rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": adapter.names,
    }


def to_peft(adapter: GatedAdapter, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """The weights under PEFT's names."""
    state = {MASK_VECTOR: adapter.mask_vector}
    for name, update in zip(adapter.names, adapter.updates, strict=True):
        down, up = update.parameters()
        state |= {f"base_model.model.{name}.lora_A.weight": down, f"base_model.model.{name}.lora_B.weight": up}
    return {name: tensor.detach().to(dtype).cpu().contiguous() for name, tensor in state.items()}


def from_peft(state: dict[str, Tensor], layers: list[str]) -> dict[str, Tensor]:
    """Back to the names of `GatedAdapter`. Raises `KeyError` for a missing tensor, `RuntimeError` for one too many."""
    state = dict(state)
    ours = {"mask_vector": state.pop(MASK_VECTOR)}
    for i, name in enumerate(layers):
        ours[f"updates.{i}.down"] = state.pop(f"base_model.model.{name}.lora_A.weight")
        ours[f"updates.{i}.up"] = state.pop(f"base_model.model.{name}.lora_B.weight")
    if state:
        raise RuntimeError(f"{WEIGHTS} holds {next(iter(state))}, which belongs to no layer in {CONFIG}")
    return ours
