"""Gradient checkpointing of a model that is in eval mode, for one kind of pass only."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial

import torch
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from multitoken.errors import UsageError


def checkpointed(model: PreTrainedModel) -> Callable[[], AbstractContextManager[None]]:
    """A context in which the layers of `model` keep no activations, but compute them again in the backward pass.

    transformers does so in training mode only, which also switches dropout on; and a layer that does so forgets its cache,
    so the mode must not last. Here the layers alone are told that they train, for as long as the context lasts, and the
    modules within them are not: dropout lies in those.

    Raises `UsageError` for a model without such layers, or one whose layers do behave otherwise in training.
    """
    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    if not layers:
        raise UsageError(f"gradient_checkpointing: {type(model).__name__} has no layers that can; leave it out")

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
