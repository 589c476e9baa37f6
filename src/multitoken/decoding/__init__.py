"""The rule and the loop, written once: policies, slot cache, attention by positions, `step`, `decode`.

An island: it imports torch, transformers and its own files, flat, so that the folder can be copied into an exported
checkpoint as it is. Names are loaded when they are first used: whoever asks for an error alone waits for no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .failures import DecodingError, MultitokenError, RowsFailed
    from .loop import Decoder
    from .policies import ConfAdapt, Exact, NextToken, Policy, StaticK, make_policy
    from .records import Chunk
    from .sampling import Sampling

_HOMES = {
    "Chunk": "records",
    "ConfAdapt": "policies",
    "Decoder": "loop",
    "DecodingError": "failures",
    "Exact": "policies",
    "MultitokenError": "failures",
    "NextToken": "policies",
    "Policy": "policies",
    "RowsFailed": "failures",
    "Sampling": "sampling",
    "StaticK": "policies",
    "make_policy": "policies",
}
__all__ = [
    "Chunk",
    "ConfAdapt",
    "Decoder",
    "DecodingError",
    "Exact",
    "MultitokenError",
    "NextToken",
    "Policy",
    "RowsFailed",
    "Sampling",
    "StaticK",
    "make_policy",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
