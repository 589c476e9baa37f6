"""The flat rows of a step's logits, arranged by request and place.

Shapes: B requests, W places, N rows.
"""

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Grid:
    """Where the rows of each request are. On the device of the logits: what is looked up there."""

    counts: list[int]  # rows of each request
    owner: Tensor  # [N] the request of each row, on the device
    place: Tensor  # [N] its place in the request, on the device
    rows: NDArray[np.int64]  # [B, W] the row of each place; an arbitrary row where there is none
    valid: NDArray[np.bool_]  # [B, W]

    def of(self, values: Tensor, filler: Any) -> NDArray[Any]:
        """values [N] -> [B, W]"""
        return np.where(self.valid, values.cpu().numpy()[self.rows], filler)

    def on_device(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(self.owner.device, non_blocking=True)


@functools.lru_cache(maxsize=256)
def grid_of_one(requests: int, device: torch.device) -> Grid:
    """The grid if no request fed more than the last real token. Its arrays are shared: do not write to them."""
    return grid_of([0] * requests, device)


def grid_of(drafts: list[int], device: torch.device) -> Grid:
    """drafts: how many draft tokens each request fed."""
    number = np.array(drafts) + 1
    starts = number.cumsum() - number
    places, total = np.arange(number.max()), int(number.sum())
    owner = np.repeat(np.arange(len(number)), number)
    return Grid(
        counts=number.tolist(),
        owner=torch.from_numpy(owner).to(device, non_blocking=True),
        place=torch.from_numpy(np.arange(total) - starts[owner]).to(device, non_blocking=True),
        rows=np.minimum(starts[:, None] + places, total - 1),
        valid=places < number[:, None],
    )
