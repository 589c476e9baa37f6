"""A gated adapter in vLLM: its updates act at masks; real tokens go through the original model's layers and nothing else.

vLLM's LoRA takes an adapter id per token, which is what gating needs, but its CPU kernels read "no adapter" (-1) as the last
adapter, and copy two matrices for every token. So this is hooks, as in `decoding/gate.py`: the embedding's notes where the
masks are and puts the mask's own vector in, and each adapted layer's adds the update there. vLLM joins layers that read the
same input (q, k and v; gate and up): their updates are joined alike. Hooks need eager mode, and one rank.

Shapes: T tokens of all requests, N masks among them, D in, E out, R rank.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from vllm.model_executor.layers.linear import LinearBase
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

from multitoken.decoding.gate_file import CONFIG, WEIGHTS, from_peft
from multitoken.errors import ModelError, UnsupportedModelError


@dataclass
class Masks:
    """Where the masks of the present forward pass are. Noted at the embedding, read at every adapted layer."""

    mask_id: int
    is_mask: Tensor | None = None  # [T]
    places: Tensor | None = None  # [N]

    def look(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        self.is_mask = args[0] == self.mask_id
        self.places = self.is_mask.nonzero()[:, 0]
        return (args[0].masked_fill(self.is_mask, 0), *args[1:])


class Update:
    """What is added behind one layer of vLLM's: several low-rank updates side by side, each at its own outputs."""

    def __init__(self, masks: Masks, outputs: int) -> None:
        self._masks = masks
        self._outputs = outputs
        self._parts: list[tuple[int, Tensor, Tensor]] = []  # (first output, down [R, D], up [E, R])
        self._whole: Tensor | None = None  # [outputs, D]

    def join(self, first: int, down: Tensor, up: Tensor) -> None:
        self._parts.append((first, down, up))

    def settle(self) -> None:
        """One matrix in the place of the parts where it is not much larger than they are."""
        inputs = self._parts[0][1].shape[1]
        if 2 * sum(down.numel() + up.numel() for _, down, up in self._parts) < self._outputs * inputs:
            return
        whole = self._parts[0][1].new_zeros(self._outputs, inputs)
        for first, down, up in self._parts:
            whole[first : first + len(up)] += up @ down
        self._whole = whole

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...], output: Any) -> None:
        places = self._masks.places
        if places is None or not len(places):
            return
        y: Tensor = output[0] if isinstance(output, tuple) else output
        x = args[0][places].float()
        if self._whole is not None:
            y.index_add_(0, places, F.linear(x, self._whole).to(y.dtype))
            return
        for first, down, up in self._parts:
            update = F.linear(F.linear(x, down), up).to(y.dtype)
            y[:, first : first + len(up)].index_add_(0, places, update)


def attach(model: nn.Module, folder: Path, mask_id: int) -> None:
    """Put the adapter in `folder` to work in vLLM's `model`. Raises `ModelError` where it does not fit."""
    try:
        settings = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        layers = settings["target_modules"]
        state = from_peft(load_file(folder / WEIGHTS), layers)
    except Exception as error:  # OSError, ValueError, KeyError, RuntimeError and safetensors' own kind
        raise ModelError(f"{folder}: cannot read the adapter: {type(error).__name__}: {error}") from error
    device = next(model.parameters()).device
    masks = Masks(mask_id)
    updates: dict[str, Update] = {}
    for i, name in enumerate(layers):
        target, first, module = _find(model, name)
        update = updates.setdefault(target, Update(masks, module.output_size))
        down, up = (state[f"updates.{i}.{side}"].float().to(device) for side in ("down", "up"))
        if down.shape[1] != module.input_size or first + len(up) > module.output_size:
            raise ModelError(
                f"{folder}: the update of {name} is {len(up)} x {down.shape[1]}, which does not fit vLLM's {target} "
                f"({module.output_size} x {module.input_size}); export the checkpoint again"
            )
        update.join(first, down, up)
    for target, update in updates.items():
        update.settle()
        model.get_submodule(target).register_forward_hook(update)
    _put_vector(model, state["mask_vector"].to(device), masks)


def _find(model: nn.Module, name: str) -> tuple[str, int, LinearBase]:
    """(name, first output, module) of the layer of vLLM's that the checkpoint's layer `name` has become a part of."""
    path, _, leaf = name.rpartition(".")
    target, index = name, 0
    for joined, parts in (getattr(model, "packed_modules_mapping", None) or {}).items():
        if leaf in parts:
            target, index = f"{path}.{joined}", parts.index(leaf)
    try:
        module = model.get_submodule(target)
    except AttributeError:
        module = None
    if not isinstance(module, LinearBase):
        raise UnsupportedModelError(
            f"the adapter has an update for {name}, and vLLM's {type(model).__name__} has no linear layer {target}; "
            "gated checkpoints of this family cannot be served in vLLM yet"
        )
    return target, sum(getattr(module, "output_sizes", [0])[:index]), module


def _put_vector(model: nn.Module, vector: Tensor, masks: Masks) -> None:
    embeddings = [module for module in model.modules() if type(module) is VocabParallelEmbedding]
    if len(embeddings) != 1:
        raise UnsupportedModelError(
            f"vLLM's {type(model).__name__} has {len(embeddings)} embeddings; gated checkpoints need exactly one"
        )

    def put(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        assert masks.is_mask is not None
        return torch.where(masks.is_mask[:, None], vector.to(output.dtype), output)

    embeddings[0].register_forward_pre_hook(masks.look)
    embeddings[0].register_forward_hook(put)
