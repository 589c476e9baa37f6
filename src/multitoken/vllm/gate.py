"""A gated adapter in vLLM: its updates act at masks only. Real tokens go through the original model's layers.

vLLM's LoRA takes an adapter id per token, which is what gating needs, but its CPU kernels read "no adapter" (-1) as the
last adapter, and copy two matrices for every token. So a method of ours replaces vLLM's method in each adapted layer.
It applies vLLM's method to real tokens, and the sum of weight and update to masks. vLLM merges layers that read the
same input (q, k and v; gate and up). Their updates are merged in the same way, and with tensor parallelism each rank
has its share of them (`shares.py`). For torch.compile, a gated layer is one opaque operation. The positions of the
masks are recorded outside the compiled code.

Shapes: T tokens of all requests, N masks among them, D in, E out, R rank.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from vllm.model_executor.layers.linear import LinearBase, LinearMethodBase, UnquantizedLinearMethod
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
from vllm.utils.torch_utils import direct_register_custom_op

from multitoken.decoding.gate_file import CONFIG, WEIGHTS, from_peft, layers_of, refuse_unknown, scale_of
from multitoken.decoding.noise import noise_ids
from multitoken.errors import ModelError, UnsupportedModelError

from .original import original_of, take_turns
from .shares import fits, local_id, local_outputs, share

_ROWS = 8


@dataclass
class Masks:
    """Where the masks of the current forward pass are. Recorded before the model runs, read by every adapted layer."""

    # Of the model that runs. Compiled code is cached on disk, so it cannot refer to an object of one process.
    present: ClassVar["Masks"]

    mask_id: int
    places: Tensor | None = None  # [N], None if there is no mask
    layers: dict[str, "Gated"] = field(default_factory=dict)  # by the name that the compiled model calls them by
    noise: int = 0  # vocabulary size, for an adapter without a mask vector; 0 if it has one
    real: int = 0  # rows of `order` that go to the original layer; the others go to the adapted one
    order: Tensor | None = None  # the token in each of these rows; None if the tokens are already in that order
    reals: Tensor | None = None  # [T - N] places of the real tokens, if there is an `order`
    expected: bool = True  # whether the pass may contain masks

    def look(self, ids: Tensor) -> bool:
        """Record where the masks among these tokens [T] are. Returns whether there are any."""
        Masks.present = self
        if not self.expected:
            self.places = None
            return False
        is_mask = ids == self.mask_id
        masks = is_mask.nonzero()[:, 0]
        self.places = masks if len(masks) else None
        self.real, self.order, self.reals = len(ids) - len(masks), None, None
        if not len(masks):
            return False
        if int(masks[0]) == self.real:  # all masks come after all real tokens
            return True
        self.reals = (~is_mask).nonzero()[:, 0]
        self.order = torch.cat([_filled(self.reals), _filled(masks)])
        self.real = _up(len(self.reals))
        return True

    def fill(self, ids: Tensor, positions: Tensor) -> Tensor:
        """The ids [T] of the recorded pass for the embedding: with noise ids at the masks if the adapter uses noise."""
        if not self.noise or self.places is None:
            return ids
        at = self.places
        return ids.index_copy(0, at, noise_ids(positions[at], self.noise).to(ids.dtype))


def _up(number: int) -> int:
    """Rounded up to a multiple of `_ROWS`: kernels are built for each number of rows, so few should occur."""
    return -(-number // _ROWS) * _ROWS


def _filled(places: Tensor) -> Tensor:
    """The places, padded with an arbitrary one until their number is a multiple of `_ROWS`."""
    return F.pad(places, (0, _up(len(places)) - len(places)), value=int(places[0]))


class Gated(LinearMethodBase):
    """Replaces the method of one of vLLM's layers. Holds several low-rank updates side by side, each for its own
    outputs."""

    def __init__(self, name: str, layer: LinearBase, masks: Masks) -> None:
        assert isinstance(layer.quant_method, LinearMethodBase)
        self.outputs = local_outputs(layer)
        self._name = name
        self._layer = [layer]  # in a list, so that it is not registered as a submodule
        self.method = layer.quant_method  # vLLM's own
        self._masks = masks
        self._parts: list[tuple[int, Tensor, Tensor]] = []  # (first output, down [R, D], up [E, R])
        self._merged: nn.Module | None = None

    def join(self, first: int, down: Tensor, up: Tensor) -> None:
        self._parts.append((first, down, up))

    @torch.no_grad()
    def settle(self) -> None:
        """Install this method in the layer. Weight and update become one matrix unless that is much larger than the
        parts."""
        (layer,), (_, down, _) = self._layer, self._parts[0]
        inputs = down.shape[1]
        small = 2 * sum(down.numel() + up.numel() for _, down, up in self._parts) < self.outputs * inputs
        if not small and type(self.method) is UnquantizedLinearMethod:
            # After vLLM has loaded the weight it may be packed. The layer's outputs for unit vectors are its columns.
            unit = torch.eye(inputs, dtype=layer.params_dtype, device=down.device)
            weight = self.method.apply(layer, unit).t().float()
            for first, down, up in self._parts:
                weight[first : first + len(up)] += up @ down
            merged = nn.Module()
            merged.weight = nn.Parameter(weight.to(layer.params_dtype).contiguous(), requires_grad=False)
            self.method.process_weights_after_loading(merged)
            self._merged = merged
        self._masks.layers[self._name] = self
        layer.quant_method = self

    def create_weights(self, *args: Any, **named: Any) -> None:
        raise AssertionError("a gated layer has its weights already")

    def apply(self, layer: nn.Module, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return torch.ops.vllm.multitoken_gated(x, bias, self._name, self.outputs)

    def run(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x [T, D] -> [T, E]"""
        (layer,), masks = self._layer, self._masks
        if masks.places is None:
            return self.method.apply(layer, x, bias)
        if self._merged is not None:
            rows = x if masks.order is None else x.index_select(0, masks.order)
            real = self.method.apply(layer, rows[: masks.real], bias)
            masked = self.method.apply(self._merged, rows[masks.real :], bias)
            if masks.reals is None:
                return torch.cat([real, masked])
            y = x.new_empty(len(x), self.outputs)
            y.index_copy_(0, masks.reals, real[: len(masks.reals)])
            return y.index_copy_(0, masks.places, masked[: len(masks.places)])
        y = self.method.apply(layer, x, bias)
        masked = x[masks.places].float()
        for first, down, up in self._parts:
            update = F.linear(F.linear(masked, down), up).to(y.dtype)
            y[:, first : first + len(up)].index_add_(0, masks.places, update)
        return y


def _gated(x: Tensor, bias: Tensor | None, name: str, outputs: int) -> Tensor:
    return Masks.present.layers[name].run(x, bias)


def _gated_shape(x: Tensor, bias: Tensor | None, name: str, outputs: int) -> Tensor:
    return x.new_empty(*x.shape[:-1], outputs)


direct_register_custom_op("multitoken_gated", _gated, fake_impl=_gated_shape)


class GatedEmbedding:
    """Replaces the embedding's method: the mask token has its own vector. No real token has the mask's id, which may be
    beyond the matrix."""

    def __init__(self, layer: Any, mask_id: int, vector: Tensor) -> None:
        self.method, self._mask_id = layer.quant_method, local_id(layer, mask_id)
        layer.register_buffer("mask_vector", vector, persistent=False)  # otherwise a constant in compiled code
        layer.quant_method = self

    def embedding(self, layer: nn.Module, ids: Tensor) -> Tensor:
        is_mask = ids == self._mask_id
        embedded = self.method.embedding(layer, ids.masked_fill(is_mask, 0))
        return torch.where(is_mask[..., None], layer.mask_vector.to(embedded.dtype), embedded)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.method, name)


def attach(model: nn.Module, folder: Path, mask_id: int, config: Any) -> Masks:
    """Install the adapter in `folder` in vLLM's `model`, which was made from the `VllmConfig` config. Passes without
    masks go through the original model. Returns the record of where masks are. Raises `ModelError` if the adapter does
    not fit."""
    try:
        settings = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        refuse_unknown(settings, str(folder))
        stored = load_file(folder / WEIGHTS)
        layers = layers_of(settings, stored)
        state = from_peft(stored, layers, scale_of(settings))
    except Exception as error:  # OSError, ValueError, KeyError, RuntimeError and safetensors' own kind
        raise ModelError(f"{folder}: cannot read the adapter: {type(error).__name__}: {error}") from error
    device = next(model.parameters()).device
    masks = Masks(mask_id)
    gated: dict[str, Gated] = {}
    for i, name in enumerate(layers):
        target, index, module = _find(model, name)
        if target not in gated:
            gated[target] = Gated(target, module, masks)
        down, up = (state[f"updates.{i}.{side}"].float().to(device) for side in ("down", "up"))
        if not fits(module, index, down, up):
            raise ModelError(
                f"{folder}: the update of {name} is {len(up)} x {down.shape[1]}, which does not fit vLLM's {target} "
                f"({module.output_size} x {module.input_size}); export the checkpoint again"
            )
        gated[target].join(*share(module, index, down, up))
    for layer in gated.values():
        layer.settle()
    if "mask_vector" in state:
        GatedEmbedding(_embedding_of(model), mask_id, state["mask_vector"].to(device))
    else:
        masks.noise = config.model_config.hf_text_config.vocab_size
    take_turns(model, original_of(model, config), masks, compiled=bool(config.compilation_config.mode))
    return masks


def _find(model: nn.Module, name: str) -> tuple[str, int, LinearBase]:
    """(name, index of the part, module) of vLLM's layer that contains the checkpoint's layer `name`."""
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
            f"the adapter has an update for {name}, but vLLM's {type(model).__name__} has no linear layer {target}; "
            "gated checkpoints of this family cannot be served in vLLM yet"
        )
    return target, index, module


def _embedding_of(model: nn.Module) -> Any:
    embeddings = [module for module in model.modules() if type(module) is VocabParallelEmbedding]
    if len(embeddings) != 1:
        raise UnsupportedModelError(
            f"vLLM's {type(model).__name__} has {len(embeddings)} embeddings; gated checkpoints need exactly one"
        )
    return embeddings[0]
