"""Which position may see which: the model's own rule (causal, sliding, chunked) as a table over true positions.

Transformers builds masks from cache *indices*. Blocks at the end of a packed row and slots of a cache need them by
*position*. The rule of every attention layer here depends on the two positions alone, so it is asked for once, for a
plain row of L tokens, and looked up ever after: one mechanism for training, prefill and decoding.

Shapes: B rows, S queries, T keys, L table side.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.masking_utils import create_masks_for_generate

from .records import DecodingError

Masks = Tensor | dict[str, Tensor]


class AttentionRule:
    """Boolean tables [L, L], one per kind of layer: `table[q, kv]` says whether position q sees position kv.

    A plainly causal kind has None in place of a table: long training rows do without one, decoding makes it for its views.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._eager = model.config._attn_implementation == "eager"  # adds its mask; a boolean one is silently wrong
        self._tables: Tensor | dict[str, Tensor | None] | None = None
        self._causal: Tensor | None = None
        self._length = 0

    @torch.no_grad()
    def grow(self, length: int) -> None:
        """Make the tables at least `length` long. Raises `DecodingError` where the model's layers are not attention."""
        if length <= self._length:
            return
        length = -(-length // 128) * 128
        limit = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        if limit is not None:
            length = max(min(length, limit), self._length)
        ids = torch.zeros(1, length, dtype=torch.long, device=self._model.device)
        build = getattr(self._model, "create_masks_for_generate", create_masks_for_generate)
        masks = build(
            config=self._model.config.get_text_config(),
            inputs_embeds=self._model.get_input_embeddings()(ids),
            attention_mask=torch.ones_like(ids),
            past_key_values=None,
            position_ids=torch.arange(length, device=ids.device)[None],
        )
        self._tables = (
            {kind: self._table(mask) for kind, mask in masks.items()} if isinstance(masks, dict) else self._table(masks)
        )
        self._causal = None
        self._length = length

    def _table(self, mask: Tensor | None) -> Tensor | None:
        if mask is None:  # "plainly causal", which sdpa need not be told
            return None
        if mask.ndim != 4:
            raise DecodingError(
                f"{type(self._model).__name__} has layers that are not attention over positions (recurrent or "
                "convolutional); they would decode wrongly with masks, so this model is refused"
            )
        return mask[0, 0] if mask.dtype == torch.bool else mask[0, 0] == 0

    def _or_causal(self, table: Tensor | None) -> Tensor:
        if table is not None:
            return table
        if self._causal is None:
            self._causal = torch.ones(self._length, self._length, dtype=torch.bool, device=self._model.device).tril()
        return self._causal

    def _map(self, look_up: Callable[[Tensor | None], Tensor]) -> Masks:
        assert self._length, "grow() comes first"
        if isinstance(self._tables, dict):
            return {kind: self._finish(look_up(table)) for kind, table in self._tables.items()}
        return self._finish(look_up(self._tables))

    def _finish(self, allowed: Tensor) -> Tensor:
        """[B, S, T] bool -> [B, 1, S, T] as the attention implementation wants it."""
        allowed = allowed[:, None]
        if not self._eager:
            return allowed
        dtype = self._model.dtype
        return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(
            ~allowed, torch.finfo(dtype).min
        )

    def contiguous(self, start: int, width: int) -> Masks:
        """One row whose queries are positions start .. start + width - 1, keys the slots before them and they: a view."""
        rows, columns = slice(start, start + width), slice(start + width)
        return self._map(lambda table: self._or_causal(table)[rows, columns][None])

    def slots(self, positions: Tensor, view: int) -> Masks:
        """Queries at `positions` [B, S] against the cache slots 0 .. view - 1, where slot = position."""
        return self._map(lambda table: self._or_causal(table)[positions, :view])

    def between(self, queries: Tensor, keys: Tensor, allowed: Tensor) -> Masks:
        """Queries at positions [B, S], keys at positions [B, T], and only where `allowed` [B, S, T] says so too."""
        self.grow(int(torch.maximum(queries.max(), keys.max())) + 1)
        q, kv = queries[:, :, None], keys[:, None, :]
        return self._map(lambda table: (kv <= q if table is None else table[q, kv]) & allowed)
