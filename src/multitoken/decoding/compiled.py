"""Steps compiled by torch.compile: the layers of a model as one graph for any width, length and number of rows.

Four graphs do: one row or several, with masks or of one token each. All are made beforehand, on a few tokens (`Decoder.compile`); a
pass that none of them fits, such as a prompt's, runs as ever and never waits for a compiler. The output matrix stays outside, where a
draft head listens.
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

_shapes: Any = shapes  # whose `patch` is put in at run time
_GRAPHS = 16  # more than there are: the compiler gives up behind its usual limit of eight


class CompiledLayers:
    """The layers of one model. Raises `DecodingError` for a model whose layers are given more than tensors."""

    def __init__(self, model: PreTrainedModel, backend: str = "inductor") -> None:
        if Mixers.of(model) is not None:
            raise DecodingError(
                f"{type(model).__name__} has recurrent layers, whose states are kept outside of tensors: it decodes, but is not compiled"
            )
        if len(set((getattr(model, "hf_device_map", None) or {}).values())) > 1:
            raise DecodingError("a model over several devices is not compiled; load it on one, or leave compile out")
        self._layers: Any = model.get_decoder()
        self._forward = torch.compile(self._layers.forward, dynamic=True, backend=backend)
        self._making = False
        for buffer in model.buffers():  # unlike what a gate notes, they keep their sizes
            torch._dynamo.mark_static(buffer)

    @contextmanager
    def making(self) -> Iterator[None]:
        """Graphs that are missing are made, for as long as this lasts. Raises `DecodingError` where the compiler fails."""
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
        """The model's layers are the compiled ones, for the pass within."""
        before = self._layers.__dict__.get("forward")
        self._layers.__dict__["forward"] = self._forward
        try:
            # Sizes that happen to be equal in the first pass are not to be taken for the same.
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
