"""Sampling with noise that belongs to a position.

The Gumbel noise of a token is a function of (seed, row, absolute position, token) alone, and the token drawn is
argmax(log p + noise). A draft that is made and confirmed with the same noise therefore gives the text that next-token
decoding gives with that seed, in any batch. The noise is a hash and not a generator's stream, so it is computed only
for the tokens that may be drawn.

Shapes: N positions, V vocabulary, C candidates.
"""

import functools
import sys
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .likeliest import argmax
from .nucleus import candidates, nucleus

_NO_FLOAT64 = ("mps",)  # device types
_WORD = 0xFFFF_FFFF_FFFF_FFFF
_GOLDEN, _FIRST, _SECOND = 0x9E37_79B9_7F4A_7C15, 0xBF58_476D_1CE4_E5B9, 0x94D0_49BB_1331_11EB
_FIRST_64, _SECOND_64 = np.uint64(_FIRST), np.uint64(_SECOND)
_30, _27, _31, _11 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(11)
_FEW_LEFT = 16  # if at most 1 in this many tokens is left, a search is faster than noise for all
_HIGH = int(sys.byteorder == "little")  # index of the upper 32 bits of a word
_AT_ONCE = 1 << 15  # words that fit in the processor's cache, so that no fresh memory is needed
_SLACK = 2.0**-20  # far more than the rounding error of float32 for a number up to 1


def with_noise(scores: Tensor, keys: Tensor) -> Tensor:
    """Draw a token from each position's scores [N, V], with the noise of its key [N]. -> [N]"""
    if scores.device.type in _NO_FLOAT64:  # a seed gives one text on every device, so the last bits count
        return with_noise(scores.cpu(), keys.cpu()).to(scores.device)
    possible, few = scores > -torch.inf, scores.shape[-1] // _FEW_LEFT
    is_cpu = scores.device.type == "cpu"
    if not is_cpu or np.count_nonzero(possible.numpy()) <= few * len(scores):
        left = int(possible.sum(-1).max())
        if left <= few:
            return _drawn(*scores.topk(left, -1), keys)
    if is_cpu:
        return torch.from_numpy(_drawn_from_all(scores.float(), keys))
    return _drawn(scores, torch.arange(scores.shape[-1], device=scores.device).expand(scores.shape), keys)


def with_noise_in_nucleus(scores: Tensor, top_p: Tensor, keys: Tensor) -> Tensor:
    """`with_noise` of `nucleus`. If the nuclei are found without a sort, the vocabulary is not read again. -> [N]"""
    found = candidates(scores, top_p)
    return with_noise(nucleus(scores, top_p), keys) if found is None else _drawn(*found, keys)


def _drawn(scores: Tensor, tokens: Tensor, keys: Tensor) -> Tensor:
    """The one of these tokens [N, C] with the largest sum of score and noise. -> [N]"""
    best = gumbel(keys, tokens).add_(scores).argmax(-1, keepdim=True)
    return tokens.gather(-1, best)[:, 0]


@np.errstate(invalid="ignore", over="ignore")  # infinite or NaN scores: the likeliest token is drawn
def _drawn_from_all(scores: Tensor, keys: Tensor) -> np.ndarray:
    """`_drawn` of all tokens, without most of the logarithms.

    The noise of a uniform number u is below -log(1 - u). Let bar be the sum of score and noise of the likeliest token.
    A token of score s can only exceed it if 1 - u < exp(s - bar). This holds for few tokens of each position.
    """
    values, lead, streams = scores.numpy(), argmax(scores).numpy(), _streams(scores.shape[1])
    key, everyone = keys.numpy().view(np.uint64), np.arange(len(values))

    def total(rows: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        words = _scrambled(key[rows] + streams[tokens])
        return _noise_of(torch.from_numpy((words >> _11).astype(np.float64))).numpy() + values[rows, tokens]

    bar = total(everyone, lead).astype(np.float32)
    bar = (bar - np.abs(bar) * _SLACK)[:, None]
    rows, tokens = [everyone], [lead]
    width = max(1, _AT_ONCE // len(values))
    for start in range(0, values.shape[1], width):
        words = _scrambled(key[:, None] + streams[start : start + width])
        uniform = words.view(np.uint32)[:, _HIGH::2].astype(np.float32)
        uniform *= np.float32(2.0**-32)
        uniform += np.exp(values[:, start : start + width] - bar)
        row, token = np.divmod(np.flatnonzero(uniform >= 1 - _SLACK), words.shape[1])
        rows.append(row)
        tokens.append(start + token)
    row, token = np.concatenate(rows), np.concatenate(tokens)
    order = np.lexsort((-token, total(row, token)))  # the last entry of a row wins: of equals, the first token
    drawn = np.empty(len(values), np.int64)
    drawn[row[order]] = token[order]
    return drawn


@functools.lru_cache(4)
def _streams(vocabulary: int) -> np.ndarray:
    """What each token adds to a position's key."""
    return np.arange(1, vocabulary + 1, dtype=np.uint64) * np.uint64(_GOLDEN)


def noise_key(seed: int, row: int, position: int) -> int:
    """The 64-bit key of a position in a row, for a seed."""
    return _mix(seed_key(seed, row) + position)


def seed_key(seed: int, row: int) -> int:
    """The 64-bit key of a row, for a seed."""
    return _mix(_mix(seed) + row)


def noise_keys(seeds: Tensor, positions: Tensor) -> Tensor:
    """`noise_key` for N positions at once. seeds [N]: `signed(seed_key(...))` of each. -> [N] int64"""
    return _scramble(seeds + positions + signed(_GOLDEN))


def _mix(word: int) -> int:
    """One step of SplitMix64 (Steele, Lea and Flood, 2014)."""
    word = (word + _GOLDEN) & _WORD
    word = ((word ^ (word >> 30)) * _FIRST) & _WORD
    word = ((word ^ (word >> 27)) * _SECOND) & _WORD
    return word ^ (word >> 31)


def gumbel(keys: Sequence[int] | Tensor, tokens: Tensor) -> Tensor:
    """Gumbel noise of `tokens` [N, C], with one key per row, in float64 where the device has it. SplitMix64 again:
    token t takes the stream's number t."""
    if tokens.device.type in _NO_FLOAT64:
        on_cpu = keys.cpu() if isinstance(keys, Tensor) else keys
        return gumbel(on_cpu, tokens.cpu()).float().to(tokens.device)
    if not isinstance(keys, Tensor):
        keys = torch.tensor([signed(key) for key in keys], device=tokens.device)
    return _noise_of(_shift(_scramble(keys[:, None] + (tokens + 1) * signed(_GOLDEN)), 11).double())


def _noise_of(high: Tensor) -> Tensor:
    """The Gumbel noise given by the upper 53 bits of scrambled words, computed in place. high: float64"""
    uniform = high.add_(0.5).mul_(2.0**-53)  # inside (0, 1)
    return uniform.log_().neg_().log_().neg_()


def _scramble(word: Tensor) -> Tensor:
    """`_mix` without its addition, on 64-bit words that torch holds as int64."""
    if word.device.type == "cpu":  # numpy takes a fraction of the time
        return torch.from_numpy(_scrambled(word.numpy().view(np.uint64).copy()).view(np.int64))
    word = (word ^ _shift(word, 30)).mul_(signed(_FIRST))
    word = word.bitwise_xor_(_shift(word, 27)).mul_(signed(_SECOND))
    return word.bitwise_xor_(_shift(word, 31))


def _scrambled(words: np.ndarray) -> np.ndarray:
    """`_scramble`, in place."""
    half = np.empty_like(words)
    for shift, factor in ((_30, _FIRST_64), (_27, _SECOND_64)):
        np.right_shift(words, shift, out=half)
        words ^= half
        words *= factor
    np.right_shift(words, _31, out=half)
    words ^= half
    return words


def signed(word: int) -> int:
    """The same 64 bits as an int64 for torch. Its products wrap around like unsigned ones."""
    return word - (1 << 64) if word >> 63 else word


def _shift(word: Tensor, by: int) -> Tensor:
    """Shift to the right, filling with zeros."""
    return (word >> by).bitwise_and_((1 << (64 - by)) - 1)
