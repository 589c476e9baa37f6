"""Gradient checkpointing for a model in eval mode, switched on only for the passes that need it."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial

import torch
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from multitoken.errors import UsageError


def checkpointed(model: PreTrainedModel) -> Callable[[], AbstractContextManager[None]]:
    """A context in which the layers of `model` keep no activations and compute them again in the backward pass.

    transformers checkpoints only in training mode. Training mode also switches dropout on, and a layer that checkpoints
    ignores its cache, so the mode must not stay on. Here only the layers themselves are set to training mode, and only
    inside the context. The modules within the layers, where dropout is, stay in eval mode.

    Raises `UsageError` for a model without such layers, or one whose layers compute something else in training mode.
    """
    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    if not layers:
        raise UsageError(f"gradient_checkpointing: {type(model).__name__} has no layers that support it; leave it out")

    @contextmanager
    def under() -> Iterator[None]:
        for layer in layers:
            layer.gradient_checkpointing = layer.training = True
            layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
        try:
            yield
        finally:
            for layer in layers:
                layer.gradient_checkpointing = layer.training = False

    ids = torch.arange(8, device=model.device)[None] % model.config.get_text_config().vocab_size
    with torch.no_grad():
        before = model(input_ids=ids, use_cache=False).logits
        with under():
            after = model(input_ids=ids, use_cache=False).logits
    if not torch.equal(before, after):
        raise UsageError(f"gradient_checkpointing would switch on dropout in {type(model).__name__}; leave it out")
    return under
