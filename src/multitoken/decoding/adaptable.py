"""Finds the layers whose output a low-rank update can be added to, token by token."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .mixer_state import cache_argument


@torch.no_grad()
def at_tokens(model: PreTrainedModel, layers: Mapping[str, nn.Module]) -> list[str]:
    """The names of the layers that map each token of a pass to one vector.

    This is observed in a forward pass over tokens that follow cached ones.
    """
    tokens, seen = 7, {}

    def look(name: str, _: nn.Module, args: tuple[Any, ...], y: Any) -> None:
        of_tokens = isinstance(y, Tensor) and y.numel() == tokens * y.shape[-1]
        seen[name] = seen.get(name, True) and of_tokens and args[0].numel() == tokens * args[0].shape[-1]

    ids = torch.zeros(1, tokens, dtype=torch.long, device=model.device)
    argument = cache_argument(model)
    first = model(input_ids=ids[:, :3], use_cache=True)
    hooks = [layer.register_forward_hook(partial(look, name)) for name, layer in layers.items()]
    try:
        model(input_ids=ids, use_cache=True, **{argument: getattr(first, argument, None)})
    finally:
        for hook in hooks:
            hook.remove()
    return [name for name in layers if seen.get(name)]


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear layer: `nn.Linear`, a quantised one, or GPT-2's `Conv1D` (a transposed matrix).

    A router that is a linear layer but returns more than its product does not count.
    """
    if isinstance(module, nn.Linear):
        return type(module).forward is nn.Linear.forward or not type(module).__name__.endswith("Router")
    return type(module).__name__ == "Conv1D"


def is_experts(module: nn.Module) -> bool:
    """Whether a module holds all experts of a layer in three-dimensional parameters: hidden states in and out."""
    return type(module).__name__.endswith("Experts") and any(p.ndim == 3 for p in module.parameters(recurse=False))


def sides(module: nn.Module, hidden: int) -> tuple[int, int]:
    """(input size, output size) of a layer."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if is_experts(module):
        return hidden, hidden
    inputs, outputs = module.weight.shape  # pyright: ignore[reportAttributeAccessIssue, reportGeneralTypeIssues]
    return int(inputs), int(outputs)
