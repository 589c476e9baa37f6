"""Runs the blocks of a step's rows through the draft head, rows that choose tokens in the same way together."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .draft_head import Drafter
from .gumbel import noise_key, signed
from .row import Row
from .sampling import without_prefix


@dataclass
class Picks:
    """The tokens and confidences that a row's logits give in one step.

    They are those at its last real token and its drafts, up to the first refusal, and then those at the masks of the
    block after it, which are still to be corrected. `line`: the row's index in the logits. `end`: the index just after
    the block's last position, counted from the end of the logits; 0 or less.
    """

    line: int
    row: Row
    masks: int
    end: int
    tokens: list[int]
    confidences: list[float]


def draft_blocks(drafter: Drafter, picks: Sequence[Picks], logits: Tensor, sure: Tensor, hidden: Tensor) -> None:
    """Correct the picks at masks, from left to right.

    logits [B, W, V], sure [B, W] (the probability of the most likely token) and hidden [B, W, D] are those of the
    wanted positions. A row takes part if it has a block after the drafts that hold.
    """
    groups: dict[Hashable, list[Picks]] = {}
    for pick in picks:
        way = pick.row.way
        if pick.masks and way is not None:
            groups.setdefault(way, []).append(pick)
    for group in groups.values():
        _draft(drafter, group, logits, sure, hidden)


def _draft(drafter: Drafter, group: Sequence[Picks], logits: Tensor, sure: Tensor, hidden: Tensor) -> None:
    """Correct one group. A row with fewer masks repeats its last position, and the extra results are dropped."""
    most, width, device = max(pick.masks for pick in group), logits.shape[1], logits.device
    request = group[0].row.request
    if len(group) == 1:
        lines: Any = slice(group[0].line, group[0].line + 1)
        places: Any = slice(width + group[0].end - most, width + group[0].end)
    else:
        lines = torch.tensor([[p.line] for p in group], device=device)
        places = torch.tensor(
            [[width + p.end - p.masks + min(j, p.masks - 1) for j in range(most)] for p in group], device=device
        )
    drafts = drafter.draft(
        hidden[lines, places],
        logits[lines, places],
        sure[lines, places],
        torch.tensor([p.tokens[-p.masks - 1] for p in group], device=device),
        warp=partial(without_prefix, request.processors),
        keys=None
        if request.seed is None
        else torch.tensor([[_key(pick, j) for j in range(most)] for pick in group], device=device),
    )
    for pick, tokens, confidences in zip(group, drafts.tokens.tolist(), drafts.confidences.tolist(), strict=True):
        pick.tokens[-pick.masks :], pick.confidences[-pick.masks :] = tokens[: pick.masks], confidences[: pick.masks]


def _key(pick: Picks, j: int) -> int:
    """The key of the noise at mask j, counted from 0."""
    request, row = pick.row.request, pick.row
    assert request.seed is not None
    return signed(noise_key(request.seed, request.noise_row, len(row.ids) + len(pick.tokens) - pick.masks + j))
