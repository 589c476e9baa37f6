"""From a step's tokens to the emitted tokens and the next drafts: `Row.take` of `decoding/`, for a whole batch at once.

A request feeds [last real token | drafts | masks]. vLLM calls all of them except the first draft tokens, and returns
logits for each. A mask is recognised by its id, which no draft ever has.

These are arrays of NumPy. They hold a few dozen numbers, and each of the many operations on them takes a microsecond, where one of
torch takes five, and more on an accelerator.

Shapes: B requests, W places (positions among the tokens that a request feeds; as many as the longest request has).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from multitoken.decoding.policies import kept_many

Ints, Flags = NDArray[np.int64], NDArray[np.bool_]


@dataclass(frozen=True)
class Rules:
    """The policies of B requests as numbers: see `kept_many`. `k` [B] limits how many tokens one block gives."""

    thresholds: NDArray[np.float64]  # [B]
    tests_anchor: Flags  # [B]
    verifies: Flags  # [B]
    k: Ints  # [B]


@dataclass(frozen=True)
class Confirmed:
    """What a step says about the drafts that it fed, each [B]."""

    fed: Ints  # drafts
    held: Ints  # drafts that were confirmed
    good: Ints  # the masks after the drafts if all of these were confirmed, else 0


@dataclass(frozen=True)
class Accepted:
    """The result of a step. Both [B, W], with -1 after the end of each row."""

    emitted: Ints
    drafts: Ints

    @classmethod
    def of_one(cls, tokens: Ints) -> "Accepted":
        """The result of a step in which no request fed more than the last real token. tokens: [B, 1]"""
        return cls(tokens, np.full_like(tokens, -1))


def confirm(tokens: Ints, drafts: Ints, mask_id: int) -> Confirmed:
    """tokens [B, W], drafts [B, W - 1]: as in `accept`."""
    steps = np.arange(drafts.shape[1])
    is_mask = drafts == mask_id
    fed = leading((drafts >= 0) & ~is_mask)
    in_front = steps < fed[:, None]
    masks = leading(is_mask | in_front) - fed
    held = leading((drafts == tokens[:, :-1]) & in_front)
    # If a draft failed, the masks after it were conditioned on a wrong token: only the anchor of the block is left.
    return Confirmed(fed, held, np.where(held == fed, masks, 0))


def accept(
    tokens: Ints,
    confidences: NDArray[np.float32],
    drafts: Ints,
    mask_id: int,
    rules: Rules,
    confirmed: Confirmed | None = None,
) -> Accepted:
    """tokens, confidences [B, W]: chosen at each place; the first is that of the last real token. drafts [B, W - 1]:
    what was fed after that token, -1 where nothing was. confirmed: the result of `confirm`, if it is already known.

    >>> rules = Rules(np.array([0.5]), np.array([False]), np.array([True]), np.array([3]))
    >>> tokens, confidences = np.array([[7, 8, 9, 4]]), np.array([[0.1, 0.2, 0.9, 0.3]])
    >>> step = accept(tokens, confidences, np.array([[7, 99, 99]]), 99, rules)
    >>> step.emitted, step.drafts  # 7 is confirmed; of the masks, 9 reaches the threshold
    (array([[ 7,  8, -1, -1]]), array([[ 9, -1, -1, -1]]))
    """
    width = tokens.shape[1]
    steps, requests = np.arange(width), np.arange(len(tokens))[:, None]
    confirmed = confirmed or confirm(tokens, drafts, mask_id)
    held, fed = confirmed.held, confirmed.good[:, None]
    places = held[:, None] + steps
    block = confidences[requests, np.minimum(places, width - 1)]
    block[(steps > fed) | ((steps >= rules.k[:, None]) & (steps > 0))] = -1.0
    behind = kept_many(block, rules.thresholds, rules.tests_anchor) - 1
    final = held + 1 + np.where(rules.verifies, 0, behind)
    drafted = np.where(rules.verifies, behind, 0)
    following = tokens[requests, np.minimum(places + 1, width - 1)]
    return Accepted(
        emitted=np.where(steps < final[:, None], tokens, -1), drafts=np.where(steps < drafted[:, None], following, -1)
    )


def leading(flags: Flags) -> Ints:
    """How many flags [B, N] at the front of each row are set. -> [B]"""
    return np.logical_and.accumulate(flags, 1).sum(1)


def cut_behind(drafts: Ints, ends: Ints) -> Ints:
    """Drafts [B, W] without everything after the first token that is in `ends` [B, E] (EOS; -1 where there is none)."""
    is_end = (drafts[:, :, None] == ends[:, None, :]).any(-1) & (drafts >= 0)
    return np.where(is_end.cumsum(1) - is_end > 0, -1, drafts)


def propose(
    drafts: Ints, rules: Rules, room: Ints, mask_id: int, width: int, ends: Ints, most: Ints | int
) -> tuple[Ints, Ints]:
    """What is fed next after the last real token: drafts, then masks. -> ([B, width] ids, [B] how many of them).

    room [B]: tokens that may still be emitted. Drafts and masks do not exceed it, and none are fed after an EOS. most
    [B]: limit on the masks of each request whose tokens are verified; its text does not depend on them.
    """
    drafts = cut_behind(drafts, ends)
    n = (drafts >= 0).sum(1)
    last = drafts[np.arange(len(drafts)), np.maximum(n - 1, 0)]
    ended = (last[:, None] == ends).any(1) & (n > 0)
    # A verified mask becomes a draft. The very last token is never a draft: the pass that confirms drafts gives it.
    left = np.maximum(room - n - np.where(rules.verifies, 2, 1), 0)
    ceiling = np.where(rules.verifies, np.minimum(rules.k - 1, most), rules.k - 1)
    masks = np.where(ended, 0, np.minimum(left, ceiling))
    ids = np.full((len(drafts), width), mask_id)
    columns = min(width, drafts.shape[1])
    ids[:, :columns] = np.where(drafts[:, :columns] >= 0, drafts[:, :columns], mask_id)
    return ids, np.minimum(n + masks, width)
