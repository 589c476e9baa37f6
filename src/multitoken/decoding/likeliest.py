"""The likeliest tokens of a position: on a CPU, torch's looks over the vocabulary take longer than they need.

Shapes: V vocabulary.
"""

import torch
from torch import Tensor


def argmax(scores: Tensor) -> Tensor:
    """The place of the first maximum of each position. scores [..., V] -> [...] int64"""
    if scores.device.type == "cpu" and scores.dtype == torch.float32:
        return torch.from_numpy(scores.numpy().argmax(-1))  # many times as fast as torch's
    return scores.argmax(-1)


def top_and_confidence(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The top token of each position and its probability, which is the confidence. logits: [..., V] float32."""
    return argmax(logits), logits.softmax(-1).amax(-1)
