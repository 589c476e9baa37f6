"""Steps compiled by torch.compile: the layers of a model as one graph for any width, length and number of rows.

Four graphs are enough: for one row or several, each with masks or with one token per row. All are compiled in advance,
on a few tokens (`Decoder.compile`). A pass that fits none of them, such as a prompt's, runs uncompiled and never waits
for the compiler. The output matrix is not part of the graphs, because a draft head reads its input with a hook.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._dynamo import config as tracing
from torch._dynamo.exc import TorchDynamoException
from torch.fx.experimental import _config as shapes
from transformers import PreTrainedModel

from .failures import DecodingError
from .mixers import Mixers

_shapes: Any = shapes  # its `patch` is added at run time
_GRAPHS = 16  # more than there are; by default the compiler gives up after eight


class CompiledLayers:
    """The layers of one model. Raises `DecodingError` for a model whose layers take inputs other than tensors."""

    def __init__(self, model: PreTrainedModel, backend: str = "inductor") -> None:
        if Mixers.of(model) is not None:
            raise DecodingError(
                f"{type(model).__name__} has recurrent layers, whose states are kept outside of tensors: it can be "
                "decoded, but not compiled"
            )
        if len(set((getattr(model, "hf_device_map", None) or {}).values())) > 1:
            raise DecodingError(
                "a model spread over several devices cannot be compiled; load it on one device, or leave compile out"
            )
        self._layers: Any = model.get_decoder()
        self._forward = torch.compile(self._layers.forward, dynamic=True, backend=backend)
        self._making = False
        for buffer in model.buffers():  # buffers keep their sizes, unlike the tensors that a gate records
            torch._dynamo.mark_static(buffer)

    @contextmanager
    def making(self) -> Iterator[None]:
        """Inside this context, missing graphs are compiled. Raises `DecodingError` if the compiler fails."""
        self._making = True
        try:
            yield
        except TorchDynamoException as error:
            reason = " ".join(str(error).split("\n\n")[0].split())
            raise DecodingError(
                f"torch.compile cannot compile {type(self._layers).__name__}: {reason}; leave compile out"
            ) from error
        finally:
            self._making = False

    @contextmanager
    def acting(self) -> Iterator[None]:
        """Inside this context, a pass runs the compiled layers of the model."""
        before = self._layers.__dict__.get("forward")
        self._layers.__dict__["forward"] = self._forward
        try:
            # Sizes that happen to be equal in the first pass must not be treated as one size.
            with (
                _shapes.patch(use_duck_shape=False),
                tracing.patch(force_nn_module_property_static_shapes=False, recompile_limit=_GRAPHS),
                torch.compiler.set_stance(self._stance),
            ):
                yield
        finally:
            if before is None:
                del self._layers.__dict__["forward"]
            else:
                self._layers.__dict__["forward"] = before

    @property
    def _stance(self) -> str:
        return "default" if self._making else "eager_on_recompile"
