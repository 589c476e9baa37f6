"""Top-p without sorting the vocabulary: on a CPU that sort takes longer than the model.

Shapes: N positions, V vocabulary.
"""

import numpy as np
import torch
from torch import Tensor
from transformers import TopPLogitsWarper

_LIKELIEST = 128  # tokens of a position that are looked at; nearly always the nucleus is among them
_DOUBT = 1e-4  # a border this close to top-p depends on how sums are rounded


def nucleus(scores: Tensor, top_p: Tensor) -> Tensor:
    """Scores [N, V] with -inf outside of the nucleus of each position: the likeliest tokens that together reach top_p [N].

    The result is transformers' and vLLM's, which sort: where the nucleus is larger than what is looked at, or its border so close
    that rounding decides, a position is sorted as they do it.
    """
    if scores.shape[-1] <= _LIKELIEST or scores.device.type != "cpu":
        return _sorted(scores, top_p)
    likeliest, _, size, clear = _front(scores, top_p)
    kept = scores.masked_fill(scores < likeliest.gather(-1, torch.from_numpy(size - 1)[:, None]), -torch.inf)
    if not clear.all():
        rest = torch.from_numpy((~clear).nonzero()[0])
        kept[rest] = _sorted(scores[rest], top_p[rest])
    return kept


def candidates(scores: Tensor, top_p: Tensor) -> tuple[Tensor, Tensor] | None:
    """The tokens of each nucleus alone: scores [N, C], -inf where one has fewer, and ids [N, C]. None where some position must be
    sorted, or all are, as `nucleus` does it."""
    if scores.shape[-1] <= _LIKELIEST or scores.device.type != "cpu":
        return None
    likeliest, tokens, size, clear = _front(scores, top_p)
    if not clear.all():
        return None
    most = int(size.max())
    beyond = torch.from_numpy(np.arange(most) >= size[:, None])
    return likeliest[:, :most].masked_fill(beyond, -torch.inf), tokens[:, :most]


def _front(scores: Tensor, top_p: Tensor) -> tuple[Tensor, Tensor, np.ndarray, np.ndarray]:
    """The likeliest tokens' scores and ids [N, _LIKELIEST], how many of them are the nucleus [N], and whether that is sure [N].

    On the CPU, and few numbers: a call of numpy's takes a fraction of one of torch's.
    """
    likeliest, tokens = scores.topk(_LIKELIEST, -1)
    shares = scores.softmax(-1).gather(-1, tokens).numpy()
    before = shares.cumsum(-1) - shares - top_p[:, None].numpy()  # of the tokens that are likelier
    size = (before < 0).sum(-1).clip(min=1)
    at, values = np.arange(len(size)), likeliest.numpy()
    is_tie = values[at, size - 1] == values[at, size.clip(max=_LIKELIEST - 1)]
    clear = (size < _LIKELIEST) & ~is_tie & (np.abs(before) > _DOUBT).all(-1)
    return likeliest, tokens, size, clear


def _sorted(scores: Tensor, top_p: Tensor) -> Tensor:
    ascending, order = scores.sort(-1)
    outside = ascending.softmax(-1).cumsum(-1) <= 1 - top_p[:, None]
    outside[:, -1] = False
    return scores.masked_fill(outside.scatter(-1, order, outside), -torch.inf)


def is_plain_top_p(processor: object) -> bool:
    """Whether a processor of transformers does what `nucleus` does."""
    return type(processor) is TopPLogitsWarper and (
        processor.min_tokens_to_keep == 1 and processor.filter_value == -float("inf")
    )
