"""Attention with grouped heads that does not copy keys and values.

A step has a mask and several queries. In that case transformers' `sdpa` repeats all cached keys and values for each
head of a group, at every layer. Here, the queries of a group's heads are placed one after another instead. The products
are the same, and one copy of the keys and values is enough.

Shapes: B rows, H query heads, K key heads, S queries, T keys, D head size.
"""

import inspect
import re
import sys
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "sdpa_grouped"
_BY_NAME = re.compile(r"_attn_implementation\s*(==|!=|in|not in)[^\n]*sdpa")


def use_grouped_attention(model: PreTrainedModel) -> None:
    """Make a model that uses `sdpa` and has grouped heads use `grouped_attention`, under its own name in the config.

    Families whose code asks for `sdpa` by name stay as they are.
    """
    if model.config._attn_implementation != "sdpa" or not any(map(_groups, model.modules())):
        return
    if _BY_NAME.search(inspect.getsource(sys.modules[type(model).__module__])):
        return
    AttentionInterface.register(NAME, grouped_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.config._attn_implementation = NAME


def _groups(module: nn.Module) -> bool:
    return getattr(module, "num_key_value_groups", 1) > 1


def grouped_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **named: Any
) -> tuple[Tensor, None]:
    """query [B, H, S, D], key and value [B, K, T, D], attention_mask [B, 1, S, T]. -> ([B, S, H, D], None)

    Cases that it is not made for go to transformers' own function: no mask, a mask for each head, a single query, or so
    many queries that copying their masks would be more work than copying the keys.
    """
    rows, heads, queries, size = query.shape
    groups = heads // key.shape[1]
    is_ours = (
        groups > 1
        and 1 < queries <= key.shape[1] * size
        and attention_mask is not None
        and attention_mask.shape[1] == 1
        and all(named.get(name) is None for name in ("softcap", "position_bias", "cache"))
    )
    if not is_ours:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **named)
    assert attention_mask is not None
    output = F.scaled_dot_product_attention(
        query.reshape(rows, heads // groups, groups * queries, size),
        key,
        value,
        attn_mask=torch.cat([attention_mask] * groups, dim=2),
        dropout_p=named.get("dropout", 0.0),
        scale=named.get("scaling"),
    )
    return output.reshape(rows, heads, queries, value.shape[-1]).transpose(1, 2).contiguous(), None
