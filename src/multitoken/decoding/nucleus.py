"""Top-p without sorting the vocabulary: on a CPU that sort takes longer than the model.

Shapes: N positions, V vocabulary.
"""

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
    likeliest = scores.topk(_LIKELIEST, -1).values
    shares = (likeliest - scores.logsumexp(-1, keepdim=True)).exp()
    before = shares.cumsum(-1) - shares  # of the tokens that are likelier
    within = before < top_p[:, None]
    size = within.sum(-1, keepdim=True)
    least = likeliest.gather(-1, size.clamp(min=1) - 1)
    following = likeliest.gather(-1, size.clamp(max=_LIKELIEST - 1))
    clear = (size < _LIKELIEST)[:, 0] & (least != following)[:, 0] & ((before - top_p[:, None]).abs() > _DOUBT).all(-1)
    kept = scores.masked_fill(scores < least, -torch.inf)
    if not bool(clear.all()):
        rest = (~clear).nonzero()[:, 0]
        kept[rest] = _sorted(scores[rest], top_p[rest])
    return kept


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
