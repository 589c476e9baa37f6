"""Two kinds of tokens multiplied by two matrices together. A merged gate does this at every layer in every step."""

import torch
from torch import Tensor

_IDLE = 48  # rows that a batched product may waste: on a CPU, this many still cost less than a second product


def apart(is_mask: Tensor) -> tuple[Tensor, Tensor]:
    """is_mask [T] -> the tokens' indices with masks after real tokens, and each token's place in it. Both [T]."""
    order = is_mask.int().argsort(stable=True)
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order), device=order.device)
    return order, back


class Halves:
    """The tokens of a pass as two groups, real tokens and masks, each multiplied by its own matrix.

    One batched product computes both if that leaves few of its rows idle. At the width of a decoding step it takes
    little longer than a plain layer. Two products and their bookkeeping take twice as long.

    is_mask: [T], over the tokens of all rows; masks: how many of them are masks; in_order: the masks are the last.
    """

    def __init__(self, is_mask: Tensor, masks: int, *, in_order: bool) -> None:
        tokens = len(is_mask)
        self._masks = masks
        self._real = tokens - self._masks
        # The larger group's size. The halves overlap: the first starts with real tokens, the second ends with masks.
        self._size = max(self._real, self._masks)
        self._batched = self._real > 0 and 2 * self._size - tokens <= _IDLE
        self._order = self._back = None  # [T] the order with masks last; where each token is in the product
        if not in_order:
            self._order, self._back = apart(is_mask)
            if self._batched:
                self._back += is_mask * (2 * self._size - tokens)

    def product(self, x: Tensor, both: Tensor) -> Tensor:
        """x [T, D], both [2, D, E] -> [T, E]"""
        inputs, outputs = both.shape[1:]
        rows = x.contiguous() if self._order is None else x.index_select(0, self._order)
        if self._batched:
            apart = (len(rows) - self._size) * inputs
            y = torch.bmm(rows.as_strided((2, self._size, inputs), (apart, inputs, 1)), both)
            if self._back is None:
                return torch.cat((y[0, : self._real], y[1, self._size - self._masks :]))
            return y.view(-1, outputs).index_select(0, self._back)
        y = torch.cat((rows[: self._real] @ both[0], rows[self._real :] @ both[1]))
        return y if self._back is None else y.index_select(0, self._back)
