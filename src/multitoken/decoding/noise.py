"""Tokens drawn at random in the places of masks: what an adapter without a mask vector is trained on (UNO, in SGLang and vLLM).

A place's token is a function of its position and a seed, so that one block reads alike however it is laid out.
"""

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF


def noise_ids(positions: Tensor, vocabulary: int, seed: int = 0) -> Tensor:
    """Ids spread evenly over [0, vocabulary), by position. positions: any shape, int64 -> the same shape."""
    mixed = (positions.long() * 0x9E3779B1 + seed * 0x85EBCA6B + 0x27D4EB2F) & _WORD
    for shift, factor in ((16, 0x21F0AAAD), (15, 0x735A2D97)):  # a 32-bit finaliser: neighbours become strangers
        mixed = ((mixed ^ (mixed >> shift)) * factor) & _WORD
    return (mixed ^ (mixed >> 15)) % vocabulary


def stir(seed: int, ids: Tensor) -> int:
    """A seed for a training pass, from its ids: fresh noise in every pass, and the same in a run that is repeated."""
    return (seed + int(torch.sum(ids).item())) & 0x7FFFFFFF
