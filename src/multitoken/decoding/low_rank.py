"""The low-rank update, and the gate that makes it act only at the masks of a forward pass.

Shapes: B rows, S tokens, N masks among them, D in, E out, R rank.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from .halves import Halves, apart


def _no_act(there: bool) -> None:
    """Default of `Gate.act`, for an adapter that always stays in its layers."""


class Gate:
    """Where the masks of the current forward pass are. Recorded at the embedding and read at every adapted layer."""

    def __init__(self, mask_id: int) -> None:
        self.mask_id = mask_id
        self.closed = False  # True: the adapter does nothing, but the mask vector still replaces the mask id
        self._rows = 0
        self._tail = 0  # masks at the end of each row, if all masks are there and every row has as many
        self._places: Tensor | None = None  # [N] otherwise: indices into the flattened [B * S] tokens
        self._is_mask: Tensor | None = None  # [B * S]
        self._count = 0  # masks in all rows
        self._halves: Halves | None = None  # created when a merged layer first needs it
        self._expected: Sequence[int] | None = None
        # For compiled layers: indices of the real tokens, and the index of each token's product.
        self._apart: tuple[Tensor, Tensor] | None = None
        self.noted: Tensor | None = None  # [B, S] where a pass's masks are, if this was recorded before it began
        self.act: Callable[[bool], None] = _no_act  # puts the adapter into the layers or takes it out
        self.noise_seed = 0  # of the random tokens that replace masks, for an adapter without a mask vector

    @contextmanager
    def expecting(self, masks: Sequence[int], ids: Tensor | None = None) -> Iterator[None]:
        """Declare how many tokens at the end of each row are masks in the pass inside this context. The device then does
        not have to be asked, which would mean waiting for it. ids [B, S]: given if the pass runs compiled layers. Everything
        is then recorded now, in tensors, because their sizes may change between passes."""
        self._expected = masks
        try:
            if ids is not None:
                self.noted = ids == self.mask_id
                self.act(self._note(self.noted, masks))
                self._set_apart()
            yield
        finally:
            self._expected = self.noted = self._apart = None

    def _set_apart(self) -> None:
        """Describe the two groups, real tokens and masks, by index tensors alone."""
        if not self._count:
            return
        assert self._is_mask is not None
        order, back = apart(self._is_mask)
        real = len(order) - self._count
        # A group of one token would need another compiled graph, so such a token is listed and computed twice.
        again = [1 if n == 1 else 0 for n in (real, self._count)]
        back += (back >= real) * again[0]
        self._apart = torch.cat((order[:real], order[: again[0]])), back
        self._places, self._tail = torch.cat((order[real:], order[real : real + again[1]])), 0

    def look(self, ids: Tensor) -> Tensor | None:
        """Record where the masks are. ids [B, S] -> [B, S] bool, or None if there are none."""
        is_mask = ids == self.mask_id
        return is_mask if self._note(is_mask, self._expected) else None

    def _note(self, is_mask: Tensor, masks: Sequence[int] | None = None) -> bool:
        """Record where the masks are, [B, S] bool, and return whether there are any. masks: how many tokens at the end of each
        row are masks, if that is known."""
        (self._rows, width), self._tail, self._places, self._halves = is_mask.shape, 0, None, None
        self._is_mask = is_mask.flatten()
        counts = masks if masks is not None else is_mask.sum(1).tolist()
        self._count = sum(counts)
        if not self._count:
            return False
        n = counts[0]
        if all(count == n for count in counts) and (masks is not None or bool(is_mask[:, -n:].all())):
            self._tail = n
        elif masks is not None:
            ends = [range((row + 1) * width - count, (row + 1) * width) for row, count in enumerate(masks)]
            self._places = torch.tensor([place for end in ends for place in end], device=is_mask.device)
        else:
            self._places = is_mask.flatten().nonzero()[:, 0]
        return True

    @contextmanager
    def following(self, source: Tensor) -> Iterator[None]:
        """Inside this context, layers receive other tokens. source [B', S'] gives the index of each of them among the pass's
        tokens, counted through the rows, or -1 for a token that is not one of them and is no mask."""
        if not self.is_open:
            yield
            return
        before = self._rows, self._tail, self._places, self._is_mask, self._count, self._halves
        assert self._is_mask is not None
        try:
            self._note((source >= 0) & self._is_mask[source.clamp_min(0)])
            yield
        finally:
            self._rows, self._tail, self._places, self._is_mask, self._count, self._halves = before

    @property
    def is_open(self) -> bool:
        """Whether there is a mask at which the adapter acts."""
        return not self.closed and (self._tail > 0 or self._places is not None)

    def add(self, update: "LowRank", x: Tensor, y: Tensor) -> Tensor:
        """y [B, S, E] with the update of x [B, S, D] added at the masks. Both may be flattened to [B * S, ...]."""
        if not self.is_open:
            return y
        if self._apart is not None:
            assert self._places is not None
            flat = y.reshape(-1, y.shape[-1])
            updated = flat[self._places] + update(x.reshape(-1, x.shape[-1])[self._places]).to(y.dtype)
            return flat.index_copy(0, self._places, updated).view(y.shape)
        if self._places is not None:
            flat = y.reshape(-1, y.shape[-1])
            return flat.index_add(0, self._places, update(x.reshape(-1, x.shape[-1])[self._places]).to(y.dtype)).view(
                y.shape
            )
        x_row, y_row = x.view(self._rows, -1, x.shape[-1]), y.view(self._rows, -1, y.shape[-1])
        if self._tail == x_row.shape[1]:
            return y + update(x).to(y.dtype)
        update.add_to(y_row[:, -self._tail :], x_row[:, -self._tail :])  # in place is safe: nothing else uses y yet
        return y

    def split(self, x: Tensor, both: Tensor) -> Tensor:
        """x [B, S, D], or flattened, times both[0] at real tokens and both[1] at masks. both: [2, D, E]."""
        if self._apart is not None:
            assert self._places is not None
            (real, back), rows = self._apart, x.reshape(-1, x.shape[-1])
            products = torch.cat((rows[real] @ both[0], rows[self._places] @ both[1]))
            return products[back].view(*x.shape[:-1], both.shape[-1])
        if self._halves is None:
            assert self._is_mask is not None
            self._halves = Halves(self._is_mask, self._count, in_order=self._tail > 0 and self._rows == 1)
        return self._halves.product(x.reshape(-1, x.shape[-1]), both).view(*x.shape[:-1], both.shape[-1])


class LowRank(nn.Module):
    """x -> B A x. `down` is A [R, D], `up` is B [E, R] and starts at zero; both stay float32, whatever dtype the model has."""

    def __init__(self, inputs: int, outputs: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(rank, inputs))
        self.up = nn.Parameter(torch.zeros(outputs, rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x.to(self.down.dtype), self.down), self.up)

    def add_to(self, y: Tensor, x: Tensor) -> None:
        """y [B, S, E] += the update of x [B, S, D]. If the dtypes agree this takes one kernel less, which decoding would wait for."""
        if y.dtype == self.up.dtype and not torch.is_grad_enabled():
            y.baddbmm_(F.linear(x, self.down), self.up.t().expand(len(y), -1, -1))
        else:
            y += self(x).to(y.dtype)


def expecting_masks(
    model: PreTrainedModel, masks: Sequence[int], ids: Tensor | None = None
) -> AbstractContextManager[None]:
    """`Gate.expecting` of the model's gate. Without a gate, a context that does nothing."""
    gate: Gate | None = model.__dict__.get("_mtp_gate")
    return gate.expecting(masks, ids) if gate is not None else nullcontext()
