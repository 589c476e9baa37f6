"""multitoken: make the language model you already run answer several times faster.

    import multitoken as mt

    model = mt.load("path/to/adapted")
    answer = model.generate("What is 12 times 12?", policy=mt.Exact(threshold=0.5))
    print(answer.text, answer.tokens_per_step)

Names are loaded when they are first used, so that the command line answers at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from multitoken.checkpoints.export import export
    from multitoken.decoding import Chunk, ConfAdapt, DecodingError, Exact, NextToken, RowsFailed, StaticK
    from multitoken.errors import MultitokenError
    from multitoken.models.model import Generation, Model
    from multitoken.training.adapt import adapt

    load = Model.load

__version__ = "0.1.0"

_HOMES = {
    "Chunk": "multitoken.decoding",
    "ConfAdapt": "multitoken.decoding",
    "DecodingError": "multitoken.decoding",
    "Exact": "multitoken.decoding",
    "NextToken": "multitoken.decoding",
    "RowsFailed": "multitoken.decoding",
    "StaticK": "multitoken.decoding",
    "MultitokenError": "multitoken.errors",
    "Generation": "multitoken.models.model",
    "Model": "multitoken.models.model",
    "adapt": "multitoken.training.adapt",
    "export": "multitoken.checkpoints.export",
}
__all__ = [
    "Chunk",
    "ConfAdapt",
    "DecodingError",
    "Exact",
    "Generation",
    "Model",
    "MultitokenError",
    "NextToken",
    "RowsFailed",
    "StaticK",
    "adapt",
    "export",
    "load",
]


def __getattr__(name: str) -> Any:
    if name == "load":
        return import_module("multitoken.models.model").Model.load
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'multitoken' has no attribute {name!r}")
