"""From a step's tokens to the emitted tokens and the next drafts: `Row.take` of `decoding/`, for a whole batch at once.

A request feeds [last real token | drafts | masks]. vLLM calls all of them except the first draft tokens, and returns
logits for each. A mask is recognised by its id, which no draft ever has.

Shapes: B requests, W places (positions among the tokens that a request feeds; as many as the longest request has).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from multitoken.decoding.policies import kept_many


@dataclass(frozen=True)
class Rules:
    """The policies of B requests as numbers: see `kept_many`. `k` [B] limits how many tokens one block gives."""

    thresholds: Tensor  # [B] float64
    tests_anchor: Tensor  # [B] bool
    verifies: Tensor  # [B] bool
    k: Tensor  # [B] int64


@dataclass(frozen=True)
class Accepted:
    """The result of a step. emitted, drafts: [B, W], with -1 after the end of each row."""

    emitted: Tensor
    drafts: Tensor
    blocks: Tensor  # [3, B] drafts fed, drafts confirmed, and the masks after them if all were confirmed, else 0

    @classmethod
    def of_one(cls, tokens: Tensor) -> "Accepted":
        """The result of a step in which no request fed more than the last real token. tokens: [B, 1]"""
        return cls(tokens, torch.full_like(tokens, -1), tokens.new_zeros(3, len(tokens)))


Confirmed = tuple[Tensor, Tensor, Tensor]


def confirm(tokens: Tensor, drafts: Tensor, mask_id: int) -> Confirmed:
    """([B] drafts fed, [B] drafts confirmed, [B] masks after the drafts if all were confirmed, else 0)."""
    steps = torch.arange(drafts.shape[1], device=tokens.device)
    is_mask = drafts == mask_id
    reals = _leading((drafts >= 0) & ~is_mask)
    masks = _leading(is_mask | (steps < reals[:, None])) - reals
    held = _leading((drafts == tokens[:, :-1]) & (steps < reals[:, None]))
    # If a draft failed, the masks after it were conditioned on a wrong token: only the anchor of the block is left.
    return reals, held, torch.where(held == reals, masks, 0)


def accept(
    tokens: Tensor, confidences: Tensor, drafts: Tensor, mask_id: int, rules: Rules, confirmed: Confirmed | None = None
) -> Accepted:
    """tokens, confidences [B, W]: chosen at each place; the first is that of the last real token. drafts [B, W - 1]:
    what was fed after that token, -1 where nothing was. confirmed: the result of `confirm`, if it is already known.

    >>> rules = Rules(torch.tensor([0.5]).double(), torch.tensor([False]), torch.tensor([True]), torch.tensor([3]))
    >>> tokens, confidences = torch.tensor([[7, 8, 9, 4]]), torch.tensor([[0.1, 0.2, 0.9, 0.3]])
    >>> step = accept(tokens, confidences, torch.tensor([[7, 99, 99]]), 99, rules)
    >>> step.emitted, step.drafts  # 7 is confirmed; of the masks, 9 reaches the threshold
    (tensor([[ 7,  8, -1, -1]]), tensor([[ 9, -1, -1, -1]]))
    """
    width = tokens.shape[1]
    steps = torch.arange(width, device=tokens.device)
    reals, held, good = confirmed or confirm(tokens, drafts, mask_id)
    places = held[:, None] + steps
    fed = good[:, None]
    block = confidences.gather(1, places.clamp(max=width - 1))
    block = block.masked_fill((steps > fed) | ((steps >= rules.k[:, None]) & (steps > 0)), -1.0)
    behind = kept_many(block, rules.thresholds, rules.tests_anchor) - 1
    final = held + 1 + torch.where(rules.verifies, 0, behind)
    drafted = torch.where(rules.verifies, behind, 0)
    following = tokens.gather(1, (places + 1).clamp(max=width - 1))
    return Accepted(
        emitted=tokens.masked_fill(steps >= final[:, None], -1),
        drafts=following.masked_fill(steps >= drafted[:, None], -1),
        blocks=torch.stack([reals, held, good]),
    )


def _leading(flags: Tensor) -> Tensor:
    """How many flags [B, N] at the front of each row are set. -> [B] int64"""
    return flags.long().cumprod(1).sum(1)


def cut_behind(drafts: Tensor, ends: Tensor) -> Tensor:
    """Drafts [B, W] without everything after the first token that is in `ends` [B, E] (EOS; -1 where there is none)."""
    is_end = (drafts[:, :, None] == ends[:, None, :]).any(-1) & (drafts >= 0)
    return drafts.masked_fill(is_end.long().cumsum(1) - is_end.long() > 0, -1)


def propose(
    drafts: Tensor, rules: Rules, room: Tensor, mask_id: int, width: int, ends: Tensor, most: Tensor | int
) -> tuple[Tensor, Tensor]:
    """What is fed next after the last real token: drafts, then masks. -> ([B, width] ids, [B] how many of them).

    room [B]: tokens that may still be emitted. Drafts and masks do not exceed it, and none are fed after an EOS. most
    [B]: limit on the masks of each request whose tokens are verified; its text does not depend on them.
    """
    drafts = cut_behind(drafts, ends)
    n = (drafts >= 0).sum(1)
    last = drafts.gather(1, (n - 1).clamp(min=0)[:, None])
    ended = (last == ends).any(1) & (n > 0)
    # A verified mask becomes a draft. The very last token is never a draft: the pass that confirms drafts gives it.
    left = (room - n - torch.where(rules.verifies, 2, 1)).clamp(min=0)
    ceiling = torch.where(rules.verifies, torch.minimum(rules.k - 1, torch.as_tensor(most)), rules.k - 1)
    masks = torch.minimum(left, ceiling).masked_fill(ended, 0)
    steps = torch.arange(width, device=drafts.device)
    padded = torch.nn.functional.pad(drafts, (0, width), value=-1)[:, :width]
    ids = torch.where(steps < n[:, None], padded, mask_id)
    return ids, torch.minimum(n + masks, torch.full_like(n, width))
