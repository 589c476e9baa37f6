"""The original model beside the gated one, in vLLM: passes without masks go through it, compiled without the gate.

Both share every weight and every attention layer, hence the KV cache. Only the modules above a gated layer exist twice: vLLM
compiles such a module as a whole, and a gated layer is a wall to what it compiles.
"""

import copy
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from vllm.model_executor.model_loader.utils import initialize_model
from vllm.utils.torch_utils import set_default_torch_dtype

from .settings import ADAPTED, RESOLVED


def original_of(model: nn.Module, config: Any) -> nn.Module:
    """vLLM's `model` as it was before layers got a method that has vLLM's own in its `method`."""
    compilation = copy.copy(config.compilation_config)
    compilation.static_forward_context, compilation.static_all_moe_layers = {}, []  # a layer has its name once in each
    config = copy.copy(config)
    config.compilation_config = compilation
    # What vLLM compiles, it keeps by its options: those of the gated model must not find this one.
    config.additional_config = {k: v for k, v in config.additional_config.items() if k not in (ADAPTED, RESOLVED)}
    with set_default_torch_dtype(config.model_config.dtype), torch.device("meta"):
        original = initialize_model(config)
    _share(original, model)
    return original


def _share(original: nn.Module, gated: nn.Module) -> None:
    """Fill `original`, which has no weights, with what `gated` has."""
    original._parameters, original._buffers = gated._parameters, gated._buffers
    for name, module in gated.named_children():
        if _is_gated(module):
            module = copy.copy(module)
            module.quant_method = module.quant_method.method
        elif any(map(_is_gated, module.modules())):
            _share(original.get_submodule(name), module)
            continue
        original._modules[name] = module


def _is_gated(module: nn.Module) -> bool:
    return hasattr(getattr(module, "quant_method", None), "method")


class Looks(Protocol):
    """What knows where the masks of a pass are."""

    def look(self, ids: Tensor) -> bool:
        """Whether there are any among these tokens [T]."""
        ...

    def fill(self, ids: Tensor, positions: Tensor) -> Tensor:
        """The tokens that the embedding is to see."""
        ...


def take_turns(gated: nn.Module, original: nn.Module, masks: Looks, *, compiled: bool) -> None:
    """Have calls of `gated` go through `original` where `masks` finds none. compiled: the first call compiles both."""
    forward, first = gated.forward, compiled

    def turn(input_ids: Tensor, positions: Tensor, *args: Any, **named: Any) -> Any:
        nonlocal first
        has_masks = masks.look(input_ids)
        if first:
            first = False
            forward(input_ids, positions, *args, **named)
        if has_masks:
            return forward(masks.fill(input_ids, positions), positions, *args, **named)
        return original(input_ids, positions, *args, **named)

    gated.forward = turn
