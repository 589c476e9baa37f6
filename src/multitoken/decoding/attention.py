"""Which position may see which: the model's own rule (causal, sliding, chunked), found once and looked up by position.

Transformers builds masks from cache *indices*. Blocks at the end of a packed row and slots of a cache need masks by
*position*. For every attention layer supported here, the rule depends on the two positions alone. The model's masks are
therefore built once, for a plain row of L tokens, and the same rule serves training, prefill and decoding. A window or
chunk that shows in that row is stored as a formula, which holds at any length. Any other rule is stored as a table.

Shapes: B rows, S queries, T keys, L length of the plain row.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.masking_utils import create_causal_mask, create_masks_for_generate

from .failures import DecodingError
from .grouped import use_grouped_attention
from .mixers import Mixers
from .position_bias import carry, reads_true_positions, wants_forbidden
from .positions import position_limit

Masks = Tensor | dict[str, Tensor | None] | None  # None: for recurrent layers, which need no mask
_RECURRENT = ("linear_attention", "conv")


@dataclass(frozen=True)
class _Kind:
    """The rule of one kind of layer: causal and within a window or chunk if there is one, or given by a table."""

    known: int | None = None  # number of positions that it was found to hold for; None: it holds for all
    window: int | None = None
    chunk: int | None = None
    table: Tensor | None = None  # [L, L] bool

    def sees(self, q: Tensor, kv: Tensor) -> Tensor:
        """Whether positions q see positions kv, which broadcast together."""
        if self.table is not None:
            return self.table[q, kv]
        allowed = kv <= q
        if self.window is not None:
            allowed = allowed & (kv > q - self.window)
        if self.chunk is not None:
            allowed = allowed & (kv // self.chunk == q // self.chunk)
        return allowed


def _recognise(table: Tensor) -> _Kind:
    """The rule that produces the table [L, L]: a formula if one matches, or else the table itself."""
    length = len(table)
    at = torch.arange(length, device=table.device)
    seen = table.sum(1)
    whole = int(seen.max())  # size of a window, or of a chunk that is not the last
    for kind in (_Kind(), _Kind(window=whole), _Kind(chunk=whole)):
        if bool((kind.sees(at[:, None], at[None]) == table).all()):
            # A window as long as the row does not show in it, so what looks causal is known for this length only.
            return _Kind(known=length) if whole == length else kind
    return _Kind(known=length, table=table)


def _kinds(kinds: _Kind | dict[str, _Kind | None]) -> Iterable[_Kind | None]:
    return kinds.values() if isinstance(kinds, dict) else [kinds]


class AttentionRule:
    """The rules of a model's layers, one per kind of layer."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        use_grouped_attention(model)
        self._eager = model.config._attn_implementation == "eager"  # adds its mask; a boolean mask is silently wrong
        self._kinds: _Kind | dict[str, _Kind | None] | None = None
        self._holds = 0.0  # number of positions that the rules were found to hold for
        self._mixers = Mixers.of(model)
        self._counts = reads_true_positions(model)  # whether its attention itself counts positions
        self._forbidden = wants_forbidden(model)
        if self._counts:  # any rule beyond causal is applied inside their attention
            self._kinds = _Kind()

    @torch.no_grad()
    def grow(self, length: int) -> None:
        """Find the rules for `length` positions. Raises `DecodingError` if the model's layers are not attention."""
        if length <= self._holds:
            return
        limit = position_limit(self._model) or math.inf
        if self._kinds is not None:
            ends = [kind.known for kind in _kinds(self._kinds) if kind and kind.known is not None]
            known = min(ends, default=math.inf)
            if known >= min(length, limit):
                self._holds = math.inf if known >= limit else known
                return
        length = int(min(-(-length // 128) * 128, max(limit, length)))
        # Every window and chunk shows in a row slightly longer than it. A row of the whole length is needed only if a
        # rule is not recognised there.
        short = max(self._limits(), default=length) + 128
        for asked in (short, length) if short < length else (length,):
            self._kinds = self._ask(asked)
            if all(not kind or kind.known is None for kind in _kinds(self._kinds)):
                break

    def _ask(self, length: int) -> "_Kind | dict[str, _Kind | None]":
        """The rules, read from the masks of a plain row of `length` tokens."""
        ids = torch.zeros(1, length, dtype=torch.long, device=self._model.device)
        build = getattr(self._model, "create_masks_for_generate", create_masks_for_generate)
        # Passed in order, because the fourth, the cache, has two names: `past_key_values` up to transformers 5.23 and
        # `cache` since then.
        inputs = (
            self._model.config.get_text_config(),
            self._model.get_input_embeddings()(ids),
            torch.ones_like(ids),
            None,
        )
        positions = torch.arange(length, device=ids.device)[None]
        masks = build(*inputs, position_ids=positions)
        if self._mixers is not None and isinstance(masks, Tensor) and masks.ndim == 2:
            # Transformers has no masks for this model's kinds of layers.
            masks = create_causal_mask(*inputs, position_ids=positions)
        return (
            {n: None if n in _RECURRENT and self._mixers else self._kind(m, length, n) for n, m in masks.items()}
            if isinstance(masks, dict)
            else self._kind(masks, length)
        )

    def _limits(self) -> list[int]:
        """The windows and chunks that the config names."""
        config = self._model.config.get_text_config()
        found = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
        return [limit for limit in found if limit]

    def _kind(self, mask: Tensor | None, length: int, name: str = "") -> _Kind:
        if mask is None:  # sdpa needs no mask: plainly causal, or a window or chunk as long as this row or longer
            hides = any(limit >= length for limit in self._limits())
            return _Kind(known=length if hides and name != "full_attention" else None)
        if mask.ndim != 4:
            raise DecodingError(
                f"{type(self._model).__name__} has layers that are not attention over positions (recurrent or "
                "convolutional); with mask tokens their output would be wrong, so this model is not supported"
            )
        return _recognise(mask[0, 0] if mask.dtype == torch.bool else mask[0, 0] == 0)

    def look_up(self, q: Tensor, kv: Tensor, allowed: Tensor | None = None) -> Masks:
        """Masks of positions q [B, S, 1] and kv [B, 1, T] -> [B, 1, S, T], as the attention code expects them."""
        assert self._kinds is not None, "grow() comes first"

        def finish(kind: _Kind) -> Tensor:
            sees = kind.sees(q, kv)
            mask = self._finish(sees if allowed is None else sees & allowed)
            return carry(mask, q[..., 0], kv[:, 0]) if self._counts else mask

        if not isinstance(self._kinds, dict):
            return finish(self._kinds)
        if not any(self._kinds.values()):
            return None
        return {n: None if k is None else finish(k) for n, k in self._kinds.items()}

    def _finish(self, allowed: Tensor) -> Tensor:
        allowed = allowed[:, None]
        if self._forbidden:
            return ~allowed
        if not self._eager:
            return allowed
        dtype = self._model.dtype
        return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(
            ~allowed, torch.finfo(dtype).min
        )

    def slots(self, positions: Tensor, view: int) -> Masks:
        """Masks of queries at `positions` [B, S] against the cache slots 0 .. view - 1, where slot = position."""
        return self.look_up(positions[:, :, None], torch.arange(view, device=positions.device)[None, None])

    def between(self, queries: Tensor, keys: Tensor, allowed: Tensor) -> Masks:
        """Masks of queries at positions [B, S] and keys at positions [B, T], only where `allowed` [B, S, T] is true."""
        self.grow(int(torch.maximum(queries.max(), keys.max())) + 1)
        return self.look_up(queries[:, :, None], keys[:, None, :], allowed)
