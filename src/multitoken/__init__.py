"""multitoken: make the language model you already run answer several times faster.

    import multitoken as mt

    model = mt.load("path/to/adapted")
    answer = model.generate("What is 12 times 12?", policy=mt.Exact(threshold=0.5))
    print(answer.text, answer.tokens_per_step)

Names are imported when they are first used, so that the command line starts fast.
"""

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from multitoken.api import calibrate, evaluate
    from multitoken.checkpoints.export import export
    from multitoken.decoding.policies import ConfAdapt, Exact, NextToken, Policy, StaticK
    from multitoken.decoding.records import Chunk
    from multitoken.errors import (
        DataError,
        DecodingError,
        ModelError,
        MultitokenError,
        OutOfMemoryError,
        OutputError,
        RowsFailed,
        UnsupportedModelError,
        UsageError,
    )
    from multitoken.models.generation import Generation
    from multitoken.models.model import Model
    from multitoken.training.adapt import adapt

    load = Model.load

__version__ = "0.1.0"

# transformers and peft import these if they are installed. They then log messages about kernels for other machines.
for _talkative in ("torchao", "torch.utils._pytree", "bitsandbytes.backends.cpu.ops"):
    if logging.getLogger(_talkative).level == logging.NOTSET:
        logging.getLogger(_talkative).setLevel(logging.ERROR)

_HOMES = {
    "Chunk": "multitoken.decoding.records",
    "ConfAdapt": "multitoken.decoding.policies",
    "DataError": "multitoken.errors",
    "DecodingError": "multitoken.errors",
    "Exact": "multitoken.decoding.policies",
    "Generation": "multitoken.models.generation",
    "Model": "multitoken.models.model",
    "ModelError": "multitoken.errors",
    "MultitokenError": "multitoken.errors",
    "NextToken": "multitoken.decoding.policies",
    "OutOfMemoryError": "multitoken.errors",
    "OutputError": "multitoken.errors",
    "Policy": "multitoken.decoding.policies",
    "RowsFailed": "multitoken.errors",
    "StaticK": "multitoken.decoding.policies",
    "UnsupportedModelError": "multitoken.errors",
    "UsageError": "multitoken.errors",
    "adapt": "multitoken.training.adapt",
    "calibrate": "multitoken.api",
    "evaluate": "multitoken.api",
    "export": "multitoken.checkpoints.export",
}
__all__ = [
    "Chunk",
    "ConfAdapt",
    "DataError",
    "DecodingError",
    "Exact",
    "Generation",
    "Model",
    "ModelError",
    "MultitokenError",
    "NextToken",
    "OutOfMemoryError",
    "OutputError",
    "Policy",
    "RowsFailed",
    "StaticK",
    "UnsupportedModelError",
    "UsageError",
    "adapt",
    "calibrate",
    "evaluate",
    "export",
    "load",
]


def __getattr__(name: str) -> Any:
    if name == "load":
        return import_module("multitoken.models.model").Model.load
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'multitoken' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
