"""Random tokens that replace masks. An adapter without a mask vector is trained on them (UNO, in SGLang and vLLM).

The token at a position depends only on the position and a seed, so a block reads the same however it is laid out.
"""

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF


def noise_ids(positions: Tensor, vocabulary: int, seed: int = 0) -> Tensor:
    """Ids spread evenly over [0, vocabulary), determined by position. positions: any shape, int64 -> the same shape."""
    mixed = (positions.long() * 0x9E3779B1 + seed * 0x85EBCA6B + 0x27D4EB2F) & _WORD
    for shift, factor in ((16, 0x21F0AAAD), (15, 0x735A2D97)):  # a 32-bit finaliser: neighbours get unrelated ids
        mixed = ((mixed ^ (mixed >> shift)) * factor) & _WORD
    return (mixed ^ (mixed >> 15)) % vocabulary


def stir(seed: int, ids: Tensor) -> int:
    """A seed for a training pass, from its ids. Every pass gets new noise, and a repeated run gets the same noise."""
    return (seed + int(torch.sum(ids).item())) & 0x7FFFFFFF
