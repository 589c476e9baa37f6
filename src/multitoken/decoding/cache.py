"""Slot cache: the keys and values of the token at position p of a row are stored in slot p of the row's line.

Rolling back needs no work: slots after a row's last real token are never visible (`kv <= q`), and the next step
overwrites them. Rows are independent, so they may accept different numbers of tokens. One scratch slot at the end of a
line takes the writes of padding and is never read. A forward pass runs over a range of lines.

A recurrent layer has no slots to overwrite. `commit` tells it how many of a pass's tokens turned out to be real
(`recurrent`).

Shapes: B lines of the pass, S tokens fed, H heads, D head size.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin

from .mixers import Mixers, cache_inputs
from .recurrent import RecurrentSlots


class _SlotLayer(CacheLayerMixin):
    is_sliding = False

    def __init__(self, owner: "SlotCache") -> None:
        super().__init__()
        self._owner = owner

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.keys, self.values = self._room(key_states), self._room(value_states)
        self.is_initialized = True

    def _room(self, like: Tensor) -> Tensor:
        # Zeros: slots that no row has written yet are masked, but a masked NaN still gives a NaN.
        return like.new_zeros(self._owner.lines, like.shape[1], self._owner.capacity + 1, like.shape[3])

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """key_states, value_states: [B, H, S, D]. Returns all visible slots, [B, H, view, D]."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None and self.values is not None
        owner, view = self._owner, self._owner.view
        line = slice(owner.first, owner.first + key_states.shape[0])
        if owner.slots is None:  # one row, consecutive positions: a plain copy
            start = view - key_states.shape[2]
            self.keys[line, :, start:view] = key_states
            self.values[line, :, start:view] = value_states
        else:
            slots = owner.slots.to(self.keys.device)  # layers may be on different devices
            rows = torch.arange(line.start, line.stop, device=slots.device)[:, None]
            self.keys[rows, :, slots] = key_states.transpose(1, 2)
            self.values[rows, :, slots] = value_states.transpose(1, 2)
        return self.keys[line, :, :view], self.values[line, :, :view]

    def resize(self) -> None:
        if self.keys is None or self.values is None:
            return
        self.keys, self.values = self._resized(self.keys), self._resized(self.values)

    def _resized(self, old: Tensor) -> Tensor:
        room = self._room(old)
        lines, slots = min(len(old), len(room)), min(old.shape[2], room.shape[2]) - 1
        room[:lines, :, :slots] = old[:lines, :, :slots]
        return room

    def move(self, lines: list[int], to: list[int]) -> None:
        if self.is_initialized:
            assert self.keys is not None and self.values is not None
            self.keys[to], self.values[to] = self.keys[lines], self.values[lines]

    def clear(self, line: int) -> None:
        if self.is_initialized:
            assert self.keys is not None and self.values is not None
            self.keys[line].zero_()
            self.values[line].zero_()

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._owner.view, 0

    def get_seq_length(self) -> int:
        return 0

    def get_max_length(self) -> int:
        return self._owner.capacity


class SlotCache(Cache):
    """Lines of slots in each layer of a model, allocated at the first forward pass and grown on request.

    recurrent: the states of the model's recurrent layers, if it has any. inputs: the arguments that make a forward pass
    use this cache.
    """

    def __init__(self, model: PreTrainedModel, lines: int = 0, capacity: int = 0) -> None:
        self._slot_layers = [_SlotLayer(self) for _ in range(model.config.get_text_config().num_hidden_layers)]
        super().__init__(layers=list(self._slot_layers))
        self.lines, self.capacity = lines, capacity
        mixers = Mixers.of(model)
        self.recurrent = RecurrentSlots(mixers, lines) if mixers is not None else None
        self.inputs = cache_inputs(model, self)
        self.first = 0
        self.view = 0
        self.slots: Tensor | None = None

    @torch.inference_mode()
    def grow(self, lines: int, capacity: int) -> None:
        """Make room for at least `lines` lines of `capacity` slots. Existing contents are kept."""
        if lines > self.lines or capacity > self.capacity:
            self.resize(max(lines, self.lines), max(capacity, self.capacity))

    @torch.inference_mode()
    def resize(self, lines: int, capacity: int) -> None:
        """Have exactly `lines` lines of `capacity` slots. What is stored beyond them is lost."""
        self.lines, self.capacity = lines, capacity
        for layer in self._slot_layers:
            layer.resize()
        if self.recurrent is not None:
            self.recurrent.resize(lines)

    def place(self, view: int, slots: Tensor | None = None, first: int = 0) -> None:
        """Set where the next forward pass writes: `slots` [B, S] or, for one row, the last S positions of `view`.

        first: the line of the pass's first row.
        """
        self.view, self.slots, self.first = view, slots, first

    @property
    def scratch(self) -> int:
        """The slot for padding."""
        return self.capacity

    @torch.inference_mode()
    def move(self, lines: dict[int, int]) -> None:
        """Move lines, {to: from}, all at once."""
        if lines:
            for layer in self._slot_layers:
                layer.move(list(lines.values()), list(lines))
            if self.recurrent is not None:
                self.recurrent.move(list(lines.values()), list(lines))

    @torch.inference_mode()
    def clear(self, line: int) -> None:
        """Clear a line that holds invalid numbers: a masked NaN would still spoil the next row that uses the line."""
        for layer in self._slot_layers:
            layer.clear(line)
        if self.recurrent is not None:
            self.recurrent.forget(line)

    def has_previous_state(self, layer_idx: int | None = None, state_idx: int | None = None) -> bool:
        """Called by models with recurrent layers. Those layers are run by `mixers`, which does not use the answer."""
        return False

    def commit(self, line: int, accepted: int) -> None:
        """Report that only the first `accepted` of the tokens that the last pass fed for this line turned out real."""
        if self.recurrent is not None:
            self.recurrent.commit(line, accepted)

    def slot_bytes(self) -> int | None:
        """Bytes of one slot in all layers; None before the first forward pass. Recurrent layers have no slots."""
        parts = [part for layer in self._slot_layers for part in (layer.keys, layer.values) if part is not None]
        return sum(part.shape[1] * part.shape[3] * part.element_size() for part in parts) if parts else None

    def line_bytes(self) -> int:
        """Bytes that recurrent layers use for one line of any length; 0 before the first forward pass."""
        return self.recurrent.line_bytes() if self.recurrent is not None else 0
