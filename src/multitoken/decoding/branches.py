"""Branches: extra blocks at drafts that may be refused, so that the next step has drafts even after a refusal.

The masks of a step come after all of its drafts. If one draft is refused, the predictions at the masks are useless, and
the next step has no drafts. A branch is another block of masks in the same pass. It follows only the first few drafts,
its front. It sees nothing after that front except itself, as if the row ended there. If exactly that front is
confirmed, and no more, the branch becomes the next block. (arXiv 2507.11851 has a block after every draft. Here they
are placed where a refusal is most likely.)
"""

from collections.abc import Sequence
from dataclasses import dataclass

# Branches that a pace tries. Where a pass takes the same time for any number of tokens, 4 gain most of what 8 gain.
PACED = 4
_LEAST = 0.02  # the lowest chance of a refusal for which a branch is worth its masks


@dataclass(frozen=True)
class Branch:
    """A number of masks after the first `held` of a row's drafts."""

    held: int
    masks: int


def likely_fronts(confidences: Sequence[float], most: int) -> list[int]:
    """The `most` likeliest numbers of drafts that hold before one is refused, or fewer. confidences: of the drafts."""
    chances: list[float] = []
    before = 1.0
    for confidence in confidences:
        chances.append(before * (1.0 - confidence))
        before *= confidence
    likely = sorted(range(len(chances)), key=lambda held: -chances[held])[:most]
    return sorted(held for held in likely if chances[held] >= _LEAST)
