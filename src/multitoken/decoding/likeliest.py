"""The most likely token of each position. On a CPU, torch's search over the vocabulary takes longer than it needs.

Shapes: V vocabulary.
"""

import torch
from torch import Tensor


def argmax(scores: Tensor) -> Tensor:
    """The index of the first maximum at each position. scores [..., V] -> [...] int64"""
    if scores.device.type == "cpu" and scores.dtype == torch.float32:
        return torch.from_numpy(scores.numpy().argmax(-1))  # many times faster than torch's
    return scores.argmax(-1)


def top_and_confidence(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The top token of each position and its confidence, which is its probability. logits: [..., V] float32."""
    return argmax(logits), logits.softmax(-1).amax(-1)
