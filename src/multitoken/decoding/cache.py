"""Slot cache: the keys and values of the token at position p live in slot p.

Rolling back is nothing at all: slots behind a row's last real token are never visible (`kv <= q`) and are overwritten
by the next step. Rows of a batch are independent, so they may accept different numbers of tokens. One scratch slot at
the end takes the writes of padding and is never read.
"""

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin


class _SlotLayer(CacheLayerMixin):
    is_sliding = False

    def __init__(self, owner: "SlotCache") -> None:
        super().__init__()
        self._owner = owner

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        rows, heads, _, _ = key_states.shape
        slots = self._owner.capacity + 1
        self.keys = key_states.new_zeros(rows, heads, slots, key_states.shape[-1])
        self.values = value_states.new_zeros(rows, value_states.shape[1], slots, value_states.shape[-1])
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """key_states, value_states: [B, H, S, D]. Returns all visible slots, [B, H, view, D]."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None and self.values is not None
        view, slots = self._owner.view, self._owner.slots
        if slots is None:  # one row, consecutive positions: a plain copy
            start = view - key_states.shape[2]
            self.keys[:, :, start:view] = key_states
            self.values[:, :, start:view] = value_states
        else:
            rows = torch.arange(slots.shape[0], device=slots.device)[:, None]
            self.keys[rows, :, slots] = key_states.transpose(1, 2)
            self.values[rows, :, slots] = value_states.transpose(1, 2)
        return self.keys[:, :, :view], self.values[:, :, :view]

    def select(self, rows: Tensor) -> None:
        if self.is_initialized:
            assert self.keys is not None and self.values is not None
            self.keys, self.values = self.keys[rows], self.values[rows]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._owner.view, 0

    def get_seq_length(self) -> int:
        return 0

    def get_max_length(self) -> int:
        return self._owner.capacity


class SlotCache(Cache):
    """Slots for `capacity` positions in each layer, allocated at the first forward pass."""

    def __init__(self, layers: int, capacity: int) -> None:
        super().__init__(layers=[_SlotLayer(self) for _ in range(layers)])
        self.capacity = capacity
        self.view = 0
        self.slots: Tensor | None = None

    @property
    def scratch(self) -> int:
        """The slot for padding."""
        return self.capacity

    def place(self, view: int, slots: Tensor | None = None) -> None:
        """Say where the next forward pass writes: `slots` [B, S], or, for one row, the last S positions of `view`."""
        self.view, self.slots = view, slots

    def select(self, rows: list[int]) -> None:
        """Keep these rows, in this order."""
        for layer in self.layers:
            assert isinstance(layer, _SlotLayer)
            if layer.keys is not None:
                layer.select(torch.tensor(rows, device=layer.keys.device))
