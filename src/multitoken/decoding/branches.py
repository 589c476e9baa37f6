"""Branches: blocks behind drafts that may be refused, so that a refusal leaves drafts too.

The masks of a step stand behind all of its drafts, and say nothing if one of them is refused: the next step then has no drafts. A branch is
another block of masks in the same pass. It stands behind a front of the drafts and sees no more than that front and itself,
as if the row ended there. Where exactly that front is confirmed, and no more, the branch is the next block. (arXiv 2507.11851
has a block behind every draft; here they stand where a refusal is most likely.)
"""

from collections.abc import Sequence
from dataclasses import dataclass

PACED = 4  # of them a pace tries: where a pass takes as long for any number of tokens, they win most of what 8 do
_LEAST = 0.02  # chance of a refusal from which on a branch is worth its masks


@dataclass(frozen=True)
class Branch:
    """So many masks behind the first `held` of a row's drafts."""

    held: int
    masks: int


def likely_fronts(confidences: Sequence[float], most: int) -> list[int]:
    """The at most `most` likeliest numbers of drafts that hold before one is refused. confidences: of the drafts."""
    chances: list[float] = []
    before = 1.0
    for confidence in confidences:
        chances.append(before * (1.0 - confidence))
        before *= confidence
    likely = sorted(range(len(chances)), key=lambda held: -chances[held])[:most]
    return sorted(held for held in likely if chances[held] >= _LEAST)
