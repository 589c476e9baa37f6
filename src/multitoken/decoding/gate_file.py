"""A gate's files, in PEFT's format: two matrices per layer under PEFT's names, and the mask's own vector."""

import json
import math
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
    """The gate in these two files, made for `model` but not yet attached. Raises `DecodingError` if it does not fit."""
    try:
        settings = json.loads(Path(config).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DecodingError(f"cannot read {config}: {error}") from error
    try:
        state = load_state_dict(str(weights))
    except Exception as error:  # OSError, or safetensors' own exception
        raise DecodingError(f"cannot read {weights}: {error}") from error
    rank = settings.get("r")
    if not isinstance(settings.get("target_modules"), list) or type(rank) is not int:
        raise DecodingError(f"{config} needs target_modules, a list of layers, and r, a number")
    refuse_unknown(settings, str(config))
    layers = layers_of(settings, state)
    try:
        adapter = GatedAdapter(model, mask_id=mask_id, rank=rank, layers=layers, noise=MASK_VECTOR not in state)
        adapter.load_state_dict(from_peft(state, layers, scale_of(settings)))
    except (AttributeError, KeyError, RuntimeError) as error:
        raise DecodingError(f"{Path(weights).parent} does not fit {type(model).__name__}: {error}") from error
    return adapter.eval().requires_grad_(False)


def refuse_unknown(settings: dict[str, Any], where: str) -> None:
    """Raise `DecodingError` for kinds of PEFT adapters that have more than two matrices per layer."""
    for name in ("use_dora", "rank_pattern", "alpha_pattern", "modules_to_save", "layer_replication", "fan_in_fan_out"):
        if settings.get(name):
            raise DecodingError(f"{where}: {name} is {settings[name]!r}, which is not supported; expected plain LoRA")


def layers_of(settings: dict[str, Any], state: dict[str, Tensor]) -> list[str]:
    """The full names of the adapted layers, from the weights if PEFT's `target_modules` lists only ends of names."""
    listed = settings["target_modules"]
    start, end = "base_model.model.", ".lora_A.weight"
    found = [name.removeprefix(start).removesuffix(end) for name in state if name.endswith(end)]
    if any(name in found for name in listed) or not found:
        return listed
    return [name for name in found if any(f".{name}".endswith(f".{part}") for part in listed)]


def scale_of(settings: dict[str, Any]) -> float:
    """The factor by which PEFT multiplies an update."""
    rank = settings["r"]
    alpha = float(settings.get("lora_alpha") or rank)
    return alpha / math.sqrt(rank) if settings.get("use_rslora") else alpha / rank


def peft_settings(adapter: GatedAdapter, base: str) -> dict[str, Any]:
    """The contents of `adapter_config.json`. `base`: the location of the model that the adapter belongs to."""
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
    state: dict[str, Tensor] = {} if adapter.mask_vector is None else {MASK_VECTOR: adapter.mask_vector}
    for name, update in zip(adapter.names, adapter.updates, strict=True):
        down, up = update.parameters()
        state |= {_down(name): down, _up(name): up}
    return {name: tensor.detach().to(dtype).cpu().contiguous() for name, tensor in state.items()}


def from_peft(state: dict[str, Tensor], layers: list[str], scale: float = 1.0) -> dict[str, Tensor]:
    """Back to the names of `GatedAdapter`. Raises `KeyError` for a missing tensor, `RuntimeError` for an extra one."""
    state = dict(state)
    vector = state.pop(MASK_VECTOR, None)
    ours = {} if vector is None else {"mask_vector": vector}
    for i, name in enumerate(layers):
        up = state.pop(_up(name))
        ours[f"updates.{i}.down"] = state.pop(_down(name))
        ours[f"updates.{i}.up"] = up if scale == 1.0 else up.float() * scale
    if state:
        raise RuntimeError(f"{WEIGHTS} holds {next(iter(state))}, which belongs to no layer in {CONFIG}")
    return ours


def _down(layer: str) -> str:
    return f"base_model.model.{layer}.lora_A.weight"


def _up(layer: str) -> str:
    return f"base_model.model.{layer}.lora_B.weight"
