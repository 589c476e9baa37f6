"""The flat rows of a step's logits, arranged by request and place.

Shapes: B requests, W places, N rows.
"""

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Grid:
    """Where the rows of each request are."""

    counts: list[int]  # rows of each request
    owner: Tensor  # [N] the request of each row
    place: Tensor  # [N] its place in the request
    rows: Tensor  # [B, W] the row of each place; an arbitrary row where there is none
    valid: Tensor  # [B, W]

    def of(self, values: Tensor, filler: Any) -> Tensor:
        """values [N] -> [B, W]"""
        return values[self.rows].masked_fill(~self.valid, filler)


@functools.lru_cache(maxsize=256)
def grid_of_one(requests: int, device: torch.device) -> Grid:
    """The grid if no request fed more than the last real token. The tensors are shared: do not write to them."""
    everyone = torch.arange(requests, device=device)
    there = torch.ones(requests, 1, dtype=torch.bool, device=device)
    return Grid([1] * requests, everyone, torch.zeros_like(everyone), everyone[:, None], there)


def grid_of(drafts: list[int], device: torch.device) -> Grid:
    """drafts: how many draft tokens each request fed."""
    requests = len(drafts)
    counts = [n + 1 for n in drafts]
    number = torch.tensor(counts).to(device, non_blocking=True)
    starts = number.cumsum(0) - number
    places = torch.arange(max(counts), device=device)
    valid = places < number[:, None]
    total = sum(counts)
    owner = torch.repeat_interleave(torch.arange(requests, device=device), number, output_size=total)
    return Grid(
        counts=counts,
        owner=owner,
        place=torch.arange(total, device=device) - starts[owner],
        rows=(starts[:, None] + places).clamp(max=total - 1),
        valid=valid,
    )
