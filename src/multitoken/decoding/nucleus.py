"""Top-p without sorting the vocabulary: on a CPU that sort takes longer than the model itself.

Shapes: N positions, V vocabulary.
"""

import numpy as np
import torch
from torch import Tensor
from transformers import TopPLogitsWarper

_LIKELIEST = 128  # tokens examined at each position; nearly always they contain the nucleus
_DOUBT = 1e-4  # if a sum is this close to top-p, rounding decides where the nucleus ends


def nucleus(scores: Tensor, top_p: Tensor) -> Tensor:
    """Scores [N, V] with -inf outside the nucleus of each position: the likeliest tokens that together reach top_p [N].

    The result equals that of transformers and vLLM, which sort. A position is sorted in the same way if its nucleus is larger than
    the examined tokens, or if rounding decides where the nucleus ends.
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
    """Only the tokens of each nucleus: scores [N, C], -inf where a nucleus has fewer, and ids [N, C]. None if some position must
    be sorted, or if `nucleus` would sort all of them."""
    if scores.shape[-1] <= _LIKELIEST or scores.device.type != "cpu":
        return None
    likeliest, tokens, size, clear = _front(scores, top_p)
    if not clear.all():
        return None
    most = int(size.max())
    beyond = torch.from_numpy(np.arange(most) >= size[:, None])
    return likeliest[:, :most].masked_fill(beyond, -torch.inf), tokens[:, :most]


def _front(scores: Tensor, top_p: Tensor) -> tuple[Tensor, Tensor, np.ndarray, np.ndarray]:
    """The likeliest tokens' scores and ids [N, _LIKELIEST], how many of them are in the nucleus [N], and whether that is certain [N].

    Uses numpy: on a CPU and with few numbers, its calls take a fraction of the time of torch's.
    """
    likeliest, tokens = scores.topk(_LIKELIEST, -1)
    shares = scores.softmax(-1).gather(-1, tokens).numpy()
    before = shares.cumsum(-1) - shares - top_p[:, None].numpy()  # sum of the likelier tokens' shares, less top-p
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
    """Whether a processor of transformers does the same as `nucleus`."""
    return type(processor) is TopPLogitsWarper and (
        processor.min_tokens_to_keep == 1 and processor.filter_value == -float("inf")
    )
