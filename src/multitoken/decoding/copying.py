"""What a text suggests by itself: where it goes on as it went before, the tokens that stood there next.

    ... 1 . red apple \n 2 . red apple \n 3        ends like ... 2 . red apple \n 2, but for its last token
        [. red apple \n 2] is copied for the block, and the draft head says how far it is to be trusted

The last tokens are laid beside every earlier place of the text, and the place where they agree best is the one that is copied
from. Agreement counts for less the farther it lies behind, and a token that differs ends nothing: lists, tables and code repeat
themselves with changes.

(Copying by the longest match alone, as drafts of a whole step: prompt lookup, github.com/apoorvumang/prompt-lookup-decoding.)
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_LOOK_BACK = 16  # tokens that are laid beside earlier ones
_FADE = 0.8  # what a token counts for, against the one behind it
_WEIGHTS = _FADE ** np.arange(_LOOK_BACK, dtype=np.float32)
_WEIGHTS /= _WEIGHTS.sum()


class Copied(NamedTuple):
    """tokens: what stood next, one for each place of a block; alike: how closely the two texts agree, 0 (no place that agrees,
    the tokens say nothing) to 1."""

    tokens: list[int]
    alike: float


def copy_behind(text: Sequence[int] | NDArray[np.int64], places: int) -> Copied:
    """What might follow the last token of `text`, by what followed the place that agrees best; of equal ones the latest. Where
    that reaches the end of the text, it begins anew: the text has a period.

    Time and memory grow with the length of the text, some nanoseconds a token.
    """
    ids = np.asarray(text, dtype=np.int64)
    end = len(ids) - 1
    if end < 1:
        return Copied([0] * places, 0.0)
    scores = np.zeros(end, dtype=np.float32)  # of the earlier places 0 .. end - 1
    for back in range(min(_LOOK_BACK, end)):
        scores[back:] += _WEIGHTS[back] * (ids[: end - back] == ids[end - back])
    best = end - 1 - int(scores[::-1].argmax())
    alike = float(scores[best])
    if not alike:
        return Copied([0] * places, 0.0)
    follow = ids[best + 1 :]
    return Copied(np.resize(follow, places).tolist(), min(1.0, alike))
