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
from multitoken.decoding.positions import position_limit
from multitoken.decoding.records import DecodingError
from multitoken.decoding.row import Request, Row
from multitoken.decoding.step import Batch, Feed, forward_rows
from multitoken.errors import UnsupportedModelError

# Errors are the root mean square over the vocabulary, at the worst place, as a share of the logits' spread. A wrong mask gives
# about 1. Rounding gives 1e-5 in float32; in bf16 and fp16 a few steps of the type, which layers add up. (The largest error of
# all would do worse: one step of bf16 at a logit of 32 is 0.25, whatever the spread.)
_TOLERANCES = {torch.float64: 0.01, torch.float32: 0.01, torch.float16: 0.1, torch.bfloat16: 0.2}
_FAR = 4096  # a far position, where the config sets no limit


@torch.inference_mode()
def check_blocks(model: PreTrainedModel, mask_id: int, *, positions: int = 48) -> None:
    """Raise `UnsupportedModelError` unless packed blocks and cached steps equal plain forward passes."""
    vocabulary: int = model.config.get_text_config().vocab_size
    limit = position_limit(model) or _FAR
    length = min(positions, limit) - 4
    tokens = (torch.arange(length, device=model.device) * 7919 + 13) % max(2, min(vocabulary, mask_id))
    try:
        packed = _packed_error(model, tokens, mask_id)
        cached = _cached_error(model, tokens, mask_id)
        far = _far_error(model, tokens[: len(tokens) // 2], limit - 1)
    except (DecodingError, AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UnsupportedModelError(
            f"{type(model).__name__} does not run with block masks and a slot cache: {error}"
        ) from error
    tolerance = _TOLERANCES[model.dtype]
    for what, error in (("packed blocks", packed), ("cached steps", cached), ("tokens in front of a far one", far)):
        if not error < tolerance:
            raise UnsupportedModelError(
                f"{type(model).__name__} would decode wrongly: its logits for {what} differ from a plain forward pass by "
                f"{error:.2g} of their spread (at most {tolerance} is rounding in {model.dtype}). Models whose layers depend "
                "on cache indices or on the other positions of a pass, or carry a recurrent state, are not supported yet"
            )


def _plain(model: PreTrainedModel, ids: list[int], keep: int) -> Tensor:
    """Logits [keep, V] of the last places, from one ordinary forward pass without a cache."""
    row = torch.tensor([ids], device=model.device)
    return model(input_ids=row, attention_mask=torch.ones_like(row), use_cache=False).logits[0, -keep:].float()


def _relative(ours: Tensor, plain: Tensor) -> float:
    return float((ours.float() - plain).square().mean(-1).sqrt().max() / plain.std().clamp_min(1e-6))


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
    return _relative(logits, torch.cat(plain))


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


def _far_error(model: PreTrainedModel, tokens: Tensor, far: int) -> float:
    """What a token at the last position that may be fed, which nothing in front of it sees, does to the others: frequencies
    that follow the largest position of a pass would change them."""
    near = torch.arange(len(tokens), device=tokens.device)
    positions = torch.cat([near, near.new_tensor([far])])[None]
    ids = torch.cat([tokens, tokens[:1]])[None]
    options = {"attention_mask": torch.ones_like(ids), "use_cache": False}  # a mask of ones: no packed rows
    logits = model(input_ids=ids, position_ids=positions, **options).logits[0, :-1]
    return _relative(logits, _plain(model, tokens.tolist(), len(tokens)))
