"""The likeliest tokens of a position: on a CPU, torch's looks over the vocabulary take longer than they need.

Shapes: V vocabulary.
"""

import torch
from torch import Tensor


def argmax(scores: Tensor) -> Tensor:
    """The place of the first maximum of each position. scores [..., V] -> [...] int64"""
    if scores.device.type == "cpu" and scores.dtype == torch.float32:
        return torch.from_numpy(scores.numpy().argmax(-1))  # torch's takes ten to forty times as long
    return scores.argmax(-1)


def top_and_confidence(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The top token of each position and its probability, which is the confidence. logits: [..., V] float32."""
    return argmax(logits), logits.softmax(-1).amax(-1)


def topk(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k highest scores [..., k] and their places, the highest first. scores: [..., V].

    On the CPU only the k groups of neighbours with the highest maxima are looked at: whatever is among the k highest is in one of
    them.
    """
    size = _group(scores.shape[-1], k) if scores.device.type == "cpu" else 1
    if size == 1:
        return scores.topk(min(k, scores.shape[-1]), -1)
    grouped = scores.unflatten(-1, (-1, size))
    best = grouped.amax(-1).topk(k, -1, sorted=False).indices
    places = (best[..., None] * size + torch.arange(size)).flatten(-2)
    highest, which = scores.gather(-1, places).topk(k, -1)
    return highest, places.gather(-1, which)


def _group(vocabulary: int, k: int) -> int:
    """Neighbours in a group: about as many groups as scores in k of them; 1 where that saves nothing."""
    size = 1
    while vocabulary % (2 * size) == 0 and (2 * size) ** 2 * k <= vocabulary:
        size *= 2
    return size if size >= 16 else 1
