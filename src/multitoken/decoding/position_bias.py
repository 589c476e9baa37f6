"""Model families whose attention counts positions by index: ALiBi, and GPT-Neo's local layers.

For a block at the end of a packed row, or for a cache slot, the index is not the position, so the distances would be silently
wrong. Therefore the model's own function is called for a plain row, and its values are looked up at the true positions. The mask
of a pass carries these positions (`AttentionRule` adds them). A pass that is not ours has no such mask and is computed as usual.

Shapes: B rows, S queries, T keys, H heads, L length of the plain row.
"""

import types
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel


def carry(mask: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
    """The mask [B, 1, S, T], with the positions of its queries [B, S] and keys [B or 1, T] attached."""
    mask.true_positions = (queries, keys)  # pyright: ignore[reportAttributeAccessIssue]
    return mask


def _carried(mask: Any) -> tuple[Tensor, Tensor] | None:
    return getattr(mask, "true_positions", None)


def reads_true_positions(model: PreTrainedModel) -> bool:
    """Whether the model counts by index. If so, from now on it uses the positions that its masks carry."""
    install = _FAMILIES.get(str(model.config.model_type))
    if install is None or (model.config.model_type == "falcon" and not model.config.alibi):
        return False
    if not getattr(model, "_mtp_true_positions", False):
        install(model)
        model.__dict__["_mtp_true_positions"] = True
    return True


def wants_forbidden(model: PreTrainedModel) -> bool:
    """Whether the model's masks mark what is *not* seen, as MPT's do."""
    return model.config.model_type == "mpt"


def with_globals(function: Callable[..., Any], **names: Any) -> Callable[..., Any]:
    """A copy of the function that uses these names in place of its module's globals. The library itself is not changed."""
    inner: Any = function
    while hasattr(inner, "__wrapped__"):
        inner = inner.__wrapped__
    copied = types.FunctionType(
        inner.__code__, {**inner.__globals__, **names}, inner.__name__, inner.__defaults__, inner.__closure__
    )
    copied.__kwdefaults__ = inner.__kwdefaults__
    return copied


def _by_key(table: Tensor, keys: Tensor, rows: int) -> Tensor:
    """table [H, L], read at the keys' positions -> [rows, H, 1, T]."""
    return table[:, keys].transpose(0, 1)[:, :, None].expand(rows, -1, -1, -1)


def _alibi(build: Callable[..., Tensor], mask: Tensor, heads: int, dtype: torch.dtype) -> Tensor:
    """Replaces Bloom's and Falcon's `build_alibi_tensor`. -> [B * H, 1, T]."""
    found = _carried(mask)
    if found is None:
        return build(mask, heads, dtype=dtype)
    queries, keys = found
    plain = torch.ones(1, int(keys.max()) + 1, dtype=torch.long, device=keys.device)
    return _by_key(build(plain, heads, dtype=dtype)[:, 0], keys, len(queries)).flatten(0, 1)


def _bloom(model: Any) -> None:
    trunk = model.base_model
    trunk.build_alibi_tensor = partial(_alibi, trunk.build_alibi_tensor)


def _falcon(model: Any) -> None:
    trunk = model.base_model
    build = type(trunk).forward
    while hasattr(build, "__wrapped__"):
        build = build.__wrapped__
    swapped = with_globals(build, build_alibi_tensor=partial(_alibi, build.__globals__["build_alibi_tensor"]))
    trunk.forward = types.MethodType(swapped, trunk)


class _Bias:
    """The bias that MPT's attention slices and adds. It reports a shape of three axes, which MPT expects, but slicing it gives
    all four: [B, H, 1, T]."""

    def __init__(self, bias: Tensor) -> None:
        self._bias = bias
        self.shape = bias.shape[1:]

    def size(self, axis: int) -> int:
        return self.shape[axis]

    def __getitem__(self, _: Any) -> Tensor:
        return self._bias


def _mpt_attention(attention: Any, hidden_states: Tensor, position_bias: Tensor, *args: Any, **named: Any) -> Any:
    found = _carried(named.get("attention_mask"))
    if found is not None:
        queries, keys = found
        # MPT's bias is zero at the last position of the row. Adding a constant for all keys does not change the softmax.
        position_bias = _Bias(_by_key(position_bias[:, 0], keys, len(queries)))  # pyright: ignore[reportAssignmentType]
    return type(attention).forward(attention, hidden_states, position_bias, *args, **named)


def _mpt(model: Any) -> None:
    for block in model.base_model.blocks:
        block.attn.forward = partial(_mpt_attention, block.attn)


class _Window:
    """Replaces GPT-Neo's causal table, which says which keys each query sees. [B, 1, S, T]"""

    def __init__(self, sees: Tensor) -> None:
        self._sees = sees

    def __getitem__(self, _: Any) -> Tensor:
        return self._sees


class _Local:
    """The attention of one layer, with another causal table."""

    def __init__(self, attention: Any, bias: _Window) -> None:
        self._attention, self.bias = attention, bias

    def __getattr__(self, name: str) -> Any:
        return getattr(self._attention, name)


def _gpt_neo_attention(attention: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Any:
    found = _carried(mask)
    if found is None:
        return type(attention)._attn(attention, query, key, value, mask)
    queries, keys = found[0][:, None, :, None], found[1][:, None, None, :]
    sees = keys <= queries
    if attention.attention_type == "local":
        sees = sees & (keys > queries - attention.config.window_size)
    return type(attention)._attn(_Local(attention, _Window(sees)), query, key, value, mask)  # pyright: ignore[reportArgumentType]


def _gpt_neo(model: Any) -> None:
    for block in model.base_model.h:
        block.attn.attention._attn = partial(_gpt_neo_attention, block.attn.attention)


_FAMILIES: dict[str, Callable[[Any], None]] = {
    "bloom": _bloom,
    "falcon": _falcon,
    "mpt": _mpt,
    "gpt_neo": _gpt_neo,
}
