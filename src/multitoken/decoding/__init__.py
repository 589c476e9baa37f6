"""The rule and the loop, written once: policies, slot cache, attention by positions, `step`, `decode`.

An island: it imports torch, transformers and its own files, flat, so that the folder can be copied into an exported
checkpoint as it is.
"""

from .loop import Decoder
from .policies import ConfAdapt, Exact, NextToken, Policy, StaticK, make_policy
from .records import Chunk, DecodingError, RowsFailed
from .sampling import Sampling

__all__ = [
    "Chunk",
    "ConfAdapt",
    "Decoder",
    "DecodingError",
    "Exact",
    "NextToken",
    "Policy",
    "RowsFailed",
    "Sampling",
    "StaticK",
    "make_policy",
]
