"""A few numbers at load time: does this model family compute blocks and slots as it should?

Position-biased attention (ALiBi), recurrent layers and others take our masks without a word and answer wrongly, while
real tokens look right. So the logits of blocks and of cache slots are compared with plain forward passes, and a model
that differs is refused.
"""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from multitoken.decoding.attention import AttentionRule
from multitoken.decoding.blocks import pack_blocks
from multitoken.decoding.cache import SlotCache
from multitoken.decoding.policies import Exact
from multitoken.decoding.records import DecodingError
from multitoken.decoding.row import Request, Row
from multitoken.decoding.step import Batch, Feed, forward_rows
from multitoken.errors import UnsupportedModelError

# A wrong mask changes logits by about their own spread; rounding, even in bf16, by a small part of it.
_TOLERANCE = 0.1


@torch.inference_mode()
def check_blocks(model: PreTrainedModel, mask_id: int, *, positions: int = 48) -> None:
    """Raise `UnsupportedModelError` unless packed blocks and cached steps equal plain forward passes."""
    vocabulary: int = model.config.get_text_config().vocab_size
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None) or positions
    length = min(positions, limit) - 4
    tokens = (torch.arange(length, device=model.device) * 7919 + 13) % max(2, min(vocabulary, mask_id))
    try:
        packed = _packed_error(model, tokens, mask_id)
        cached = _cached_error(model, tokens, mask_id)
    except (DecodingError, AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UnsupportedModelError(
            f"{type(model).__name__} does not run with block masks and a slot cache: {error}"
        ) from error
    for what, error in (("packed blocks", packed), ("cached steps", cached)):
        if not error < _TOLERANCE:
            raise UnsupportedModelError(
                f"{type(model).__name__} would decode wrongly: its logits for {what} differ from a plain forward pass by "
                f"{error:.2g} of their spread (at most {_TOLERANCE} is rounding). Models whose layers depend on cache "
                "indices or carry a recurrent state are not supported yet"
            )


def _plain(model: PreTrainedModel, ids: list[int], keep: int) -> Tensor:
    """Logits [keep, V] of the last places, from one ordinary forward pass without a cache."""
    row = torch.tensor([ids], device=model.device)
    return model(input_ids=row, attention_mask=torch.ones_like(row), use_cache=False).logits[0, -keep:].float()


def _relative(ours: Tensor, plain: Tensor) -> float:
    return float((ours - plain).abs().max() / plain.std().clamp_min(1e-6))


def _packed_error(model: PreTrainedModel, tokens: Tensor, mask_id: int) -> float:
    """Two samples in one row, and a block in either."""
    start, anchors, ks = len(tokens) // 2, [len(tokens) // 4, len(tokens) - 1], (3, 4)
    segments = (torch.arange(len(tokens), device=tokens.device) >= start).long()
    batch = pack_blocks(tokens[None], [len(tokens)], torch.tensor([anchors]), ks, mask_id, segments=segments[None])
    masks = AttentionRule(model).between(batch.positions, batch.positions, batch.rule())
    logits = model(
        input_ids=batch.ids,
        attention_mask=masks,
        position_ids=batch.positions,
        use_cache=False,
        logits_to_keep=batch.slots,
    ).logits[0, -batch.slots :]
    ids = tokens.tolist()
    prefixes = ids[: anchors[0] + 1], ids[start : anchors[1] + 1]
    plain = [_plain(model, prefix + [mask_id] * (k - 1), k) for prefix, k in zip(prefixes, ks, strict=True)]
    return _relative(logits.float(), torch.cat(plain))


def _cached_error(model: PreTrainedModel, tokens: Tensor, mask_id: int) -> float:
    """Prefill with masks behind, then overwrite them with a real token, a draft and two more masks."""
    ids = tokens.tolist()
    rule = AttentionRule(model)
    rule.grow(len(ids) + 2)
    cache = SlotCache(model.config.get_text_config().num_hidden_layers, 1, len(ids) + 2)
    batch = Batch(model, mask_id, rule, cache)
    row = Row(0, Request(ids[:-2], Exact(k=4), 4))
    forward_rows(batch, [Feed(row, len(ids) - 2, masks=2)])
    row.ids, row.drafts, row.cached = ids[:-1], ids[-1:], len(ids) - 2
    logits = forward_rows(batch, [Feed(row, 1, masks=2)])
    return _relative(logits[0], _plain(model, ids + [mask_id] * 2, 4))
