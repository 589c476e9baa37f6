"""The original model next to the gated one in vLLM, compiled without the gate. Passes without masks go through it.

Both share every weight and every attention layer, and therefore the KV cache. Only the modules that contain a gated
layer exist twice: vLLM compiles such a module as a whole, and a gated layer is a barrier to that compilation.
"""

import copy
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from vllm.model_executor.model_loader.utils import initialize_model
from vllm.utils.torch_utils import set_default_torch_dtype

from .settings import ADAPTED, RESOLVED


def original_of(model: nn.Module, config: Any) -> nn.Module:
    """vLLM's `model` as it was before its layers got gated methods (which keep vLLM's own as `method`)."""
    compilation = copy.copy(config.compilation_config)
    # Each of these may hold a layer's name only once.
    compilation.static_forward_context, compilation.static_all_moe_layers = {}, []
    config = copy.copy(config)
    config.compilation_config = compilation
    # vLLM caches compiled code by the options. The gated model must not find the code of this one.
    config.additional_config = {k: v for k, v in config.additional_config.items() if k not in (ADAPTED, RESOLVED)}
    with set_default_torch_dtype(config.model_config.dtype), torch.device("meta"):
        original = initialize_model(config)
    _share(original, model)
    return original


def _share(original: nn.Module, gated: nn.Module) -> None:
    """Give `original`, which has no weights, the weights and layers of `gated`."""
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
    """An object that knows where the masks of a pass are."""

    def look(self, ids: Tensor) -> bool:
        """Whether there are masks among these tokens [T]."""
        ...

    def fill(self, ids: Tensor, positions: Tensor) -> Tensor:
        """The token ids for the embedding."""
        ...


def take_turns(gated: nn.Module, original: nn.Module, masks: Looks, *, compiled: bool) -> None:
    """Route calls of `gated` to `original` if `masks` finds no mask. compiled: the first call compiles both."""
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
