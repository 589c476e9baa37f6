"""From a step's tokens to what is emitted and what is drafted next: `Row.take` of `decoding/`, for a whole batch at once.

A request feeds [last real token | drafts | masks]; vLLM calls all but the first of them draft tokens, and gives logits at
each. What is a mask is seen by its id, which no draft ever has.

Shapes: B requests, W places (the most that one of them has).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from multitoken.decoding.policies import kept_many


@dataclass(frozen=True)
class Rules:
    """The policies of B requests as numbers: see `kept_many`. `k` [B] caps what one block gives."""

    thresholds: Tensor  # [B] float64
    tests_anchor: Tensor  # [B] bool
    verifies: Tensor  # [B] bool
    k: Tensor  # [B] int64


@dataclass(frozen=True)
class Accepted:
    """What a step comes to. emitted, drafts: [B, W], -1 behind the end of each row."""

    emitted: Tensor
    drafts: Tensor
    blocks: Tensor  # [3, B] drafts that were fed, those that held, and masks behind them all if they all held, else 0

    @classmethod
    def of_one(cls, tokens: Tensor) -> "Accepted":
        """Of a step in which nobody fed more than the last real token. tokens: [B, 1]"""
        return cls(tokens, torch.full_like(tokens, -1), tokens.new_zeros(3, len(tokens)))


Confirmed = tuple[Tensor, Tensor, Tensor]


def confirm(tokens: Tensor, drafts: Tensor, mask_id: int) -> Confirmed:
    """([B] drafts that were fed, [B] those that held, [B] masks behind them all if they all held, else 0)."""
    steps = torch.arange(drafts.shape[1], device=tokens.device)
    is_mask = drafts == mask_id
    reals = _leading((drafts >= 0) & ~is_mask)
    masks = _leading(is_mask | (steps < reals[:, None])) - reals
    held = _leading((drafts == tokens[:, :-1]) & (steps < reals[:, None]))
    # Behind a draft that failed the masks were conditioned on a wrong token: nothing of the block is left but its anchor.
    return reals, held, torch.where(held == reals, masks, 0)


def accept(
    tokens: Tensor, confidences: Tensor, drafts: Tensor, mask_id: int, rules: Rules, confirmed: Confirmed | None = None
) -> Accepted:
    """tokens, confidences [B, W]: chosen at each place, the last real token's first. drafts [B, W - 1]: what was fed
    behind that one, -1 where nothing was. confirmed: what `confirm` says, if that is known already.

    >>> rules = Rules(torch.tensor([0.5]).double(), torch.tensor([False]), torch.tensor([True]), torch.tensor([3]))
    >>> tokens, confidences = torch.tensor([[7, 8, 9, 4]]), torch.tensor([[0.1, 0.2, 0.9, 0.3]])
    >>> step = accept(tokens, confidences, torch.tensor([[7, 99, 99]]), 99, rules)
    >>> step.emitted, step.drafts  # 7 holds; of the masks, 9 is sure enough
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
    """Drafts [B, W] without what stands behind the first token that is in `ends` [B, E] (EOS: -1 where there is none)."""
    is_end = (drafts[:, :, None] == ends[:, None, :]).any(-1) & (drafts >= 0)
    return drafts.masked_fill(is_end.long().cumsum(1) - is_end.long() > 0, -1)


def propose(
    drafts: Tensor, rules: Rules, room: Tensor, mask_id: int, width: int, ends: Tensor, most: Tensor | int
) -> tuple[Tensor, Tensor]:
    """What is fed next behind the last real token: drafts, then masks. -> ([B, width] ids, [B] how many of them).

    room [B]: tokens that may still be emitted. Neither drafts nor masks go beyond it, and none stand behind an EOS. most: masks
    of each request [B] whose tokens are verified; without them it writes the same text.
    """
    drafts = cut_behind(drafts, ends)
    n = (drafts >= 0).sum(1)
    last = drafts.gather(1, (n - 1).clamp(min=0)[:, None])
    ended = (last == ends).any(1) & (n > 0)
    # A verified mask becomes a draft, and the last token of all is never a draft: it comes out of the confirmation.
    left = (room - n - torch.where(rules.verifies, 2, 1)).clamp(min=0)
    ceiling = torch.where(rules.verifies, torch.minimum(rules.k - 1, torch.as_tensor(most)), rules.k - 1)
    masks = torch.minimum(left, ceiling).masked_fill(ended, 0)
    steps = torch.arange(width, device=drafts.device)
    padded = torch.nn.functional.pad(drafts, (0, width), value=-1)[:, :width]
    ids = torch.where(steps < n[:, None], padded, mask_id)
    return ids, torch.minimum(n + masks, torch.full_like(n, width))
