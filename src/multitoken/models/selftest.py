"""A short test at load time: does this model family compute blocks and cache slots correctly?

Some layers accept our attention masks without an error and compute wrong results for blocks, while real tokens look right: layers
that count positions by index, unknown recurrent layers and others. So the logits of blocks and of cached steps are compared with
plain forward passes, and a model that differs is refused.
"""

import re

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from multitoken.decoding.attention import AttentionRule
from multitoken.decoding.block_states import block_inputs
from multitoken.decoding.blocks import pack_blocks
from multitoken.decoding.cache import SlotCache
from multitoken.decoding.failures import DecodingError
from multitoken.decoding.mixers import KINDS, Mixers
from multitoken.decoding.policies import Exact
from multitoken.decoding.positions import position_limit
from multitoken.decoding.row import Request, Row
from multitoken.decoding.step import Batch, Feed, forward_rows
from multitoken.errors import UnsupportedModelError

# Errors are the root mean square over the vocabulary, at the worst position, as a share of the logits' spread. A wrong mask gives
# about 1. Rounding gives 1e-5 in float32; in bf16 and fp16 it gives a few steps of the type, which add up over the layers. (The
# largest single error would be a worse measure: one step of bf16 at a logit of 32 is 0.25, whatever the spread.)
_TOLERANCES = {torch.float64: 0.01, torch.float32: 0.01, torch.float16: 0.1, torch.bfloat16: 0.2}
_FAR = 4096  # the far position, if the config sets no limit
_STATEFUL = re.compile(
    r"Mamba|Rwkv|RecurrentBlock|Lightning|LinearAttention|DeltaNet|DeltaAttention|ShortConv|Retention|SSM"
)


@torch.inference_mode()
def check_blocks(model: PreTrainedModel, mask_id: int, *, positions: int = 48) -> None:
    """Raise `UnsupportedModelError` unless packed blocks and cached steps equal plain forward passes."""
    tokens, tolerance = some_tokens(model, mask_id, positions), tolerance_of(model)
    tests = {"packed blocks": packed_error, "cached steps": cached_error, "tokens in front of a far one": far_error}
    for what, error_of in tests.items():
        try:
            error = error_of(model, tokens, mask_id)
        except (DecodingError, AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise UnsupportedModelError(
                f"{type(model).__name__} is refused: {why_refused(model, what, error)}"
            ) from error
        if not error < tolerance:
            raise UnsupportedModelError(
                f"{type(model).__name__} would decode wrongly and is refused: its logits for {what} differ from a plain "
                f"forward pass by {error:.2g} of their spread (at most {tolerance} is rounding in {model.dtype}). "
                f"{what_would_help(model)}"
            )


def tolerance_of(model: PreTrainedModel) -> float:
    """The largest `relative` error that counts as rounding in the model's type."""
    return _TOLERANCES[model.dtype]


def some_tokens(model: PreTrainedModel, mask_id: int, positions: int = 48) -> Tensor:
    """Ids [positions - 4] to test with; none of them is the mask token's."""
    vocabulary: int = model.config.get_text_config().vocab_size
    length = min(positions, position_limit(model) or positions) - 4
    return (torch.arange(length, device=model.device) * 7919 + 13) % max(2, min(vocabulary, mask_id))


def unknown_layers(model: PreTrainedModel) -> list[str]:
    """Class names of layers that carry a state from token to token and that no mixer here supports."""
    mixers = Mixers.of(model)
    known = {id(mixer.module) for mixer in mixers.all} if mixers is not None else set()
    layers = (m for m in model.modules() if id(m) not in known and not isinstance(m, nn.ModuleList))
    named = {type(m).__name__ for m in layers if _STATEFUL.search(type(m).__name__)}
    return sorted(
        n for n in named if not re.search(r"Norm|Model|ForCausalLM|DecoderLayer|Block$|MLP", n) or "Recurrent" in n
    )


def why_refused(model: PreTrainedModel, what: str, error: Exception) -> str:
    """What an error in one of these tests means, in plain words."""
    if unknown_layers(model):
        return what_would_help(model)
    return f"it does not run with {what} ({type(error).__name__}: {error}). {what_would_help(model)}"


def what_would_help(model: PreTrainedModel) -> str:
    """The likely cause if a model differs from its own plain passes, and what would help."""
    kinds = ", ".join(kind.name for kind in KINDS)
    if unknown := unknown_layers(model):
        return (
            f"Its layers of the kind {', '.join(unknown)} carry a state from token to token, and mask tokens would change that "
            f"state. This is prevented for {kinds} only; a new kind is one file in decoding/ (docs/architectures.md)"
        )
    return (
        "Layers that count positions by cache index, or use a rule for visible tokens that is not in their attention masks, "
        "cause this; see docs/architectures.md for the families that are known to work"
    )


def _plain(model: PreTrainedModel, ids: list[int], keep: int) -> Tensor:
    """Logits [keep, V] of the last positions, from one ordinary forward pass without a cache."""
    row = torch.tensor([ids], device=model.device)
    return model(input_ids=row, attention_mask=torch.ones_like(row), use_cache=False).logits[0, -keep:].float()


def relative(ours: Tensor, plain: Tensor) -> float:
    return float((ours.float() - plain).square().mean(-1).sqrt().max() / plain.std().clamp_min(1e-6))


def packed_error(model: PreTrainedModel, tokens: Tensor, mask_id: int) -> float:
    """Two samples in one row, with a block in each: the error of their logits compared with plain passes."""
    return relative(*_packed_and_plain(model, tokens, mask_id))


def packed_gradient_error(model: PreTrainedModel, tokens: Tensor, mask_id: int) -> float:
    """The same error for the gradient with respect to the input embeddings of a random function of the logits."""
    weight: Tensor = model.get_input_embeddings().weight  # pyright: ignore[reportAssignmentType]
    wanted = weight.requires_grad
    weight.requires_grad_(True)
    try:
        both = _packed_and_plain(model, tokens, mask_id)
        random = torch.randn(both[0].shape, generator=torch.Generator().manual_seed(0)).to(both[0].device)
        ours, plain = (torch.autograd.grad((logits * random).sum(), weight)[0].float() for logits in both)
    finally:
        weight.requires_grad_(wanted)
    return float((ours - plain).abs().max() / plain.abs().max().clamp_min(1e-12))


def _packed_and_plain(model: PreTrainedModel, tokens: Tensor, mask_id: int) -> tuple[Tensor, Tensor]:
    start, anchors, ks = len(tokens) // 2, [len(tokens) // 4, len(tokens) - 1], (3, 4)
    segments = (torch.arange(len(tokens), device=tokens.device) >= start).long()
    batch = pack_blocks(tokens[None], [len(tokens)], torch.tensor([anchors]), ks, mask_id, segments=segments[None])
    masks = AttentionRule(model).between(batch.positions, batch.positions, batch.rule())
    logits = model(
        input_ids=batch.ids,
        attention_mask=masks,
        position_ids=batch.positions,
        logits_to_keep=batch.slots,
        **block_inputs(model, batch),
    ).logits[0, -batch.slots :]
    ids = tokens.tolist()
    prefixes = ids[: anchors[0] + 1], ids[start : anchors[1] + 1]
    plain = [_plain(model, prefix + [mask_id] * (k - 1), k) for prefix, k in zip(prefixes, ks, strict=True)]
    return logits.float(), torch.cat(plain)


def cached_error(model: PreTrainedModel, tokens: Tensor, mask_id: int) -> float:
    """Two rows of different lengths over three steps: prompts followed by masks, then a token and a draft per row, of which one
    draft is rejected, then the step after that. Returns the error of the last two steps."""
    ids = tokens.tolist()
    rule = AttentionRule(model)
    rule.grow(len(ids) + 4)
    cache = SlotCache(model, 2, len(ids) + 4)
    batch = Batch(model, mask_id, rule, cache)
    texts = ids, ids[: len(ids) * 2 // 3]
    rows = [Row(i, Request(text[:-4], Exact(k=4), 8)) for i, text in enumerate(texts)]

    def feed(masks: int, accepted: list[int]) -> Tensor:
        logits = forward_rows(batch, [Feed(row, row.pending(), masks=masks) for row in rows])
        for i, (row, n) in enumerate(zip(rows, accepted, strict=True)):
            cache.commit(i, n)
            row.cached += n
        return logits

    feed(2, [len(text) - 4 for text in texts])
    for row, text in zip(rows, texts, strict=True):
        row.ids, row.drafts = text[:-3], [text[-3]]
    rows[1].drafts = [(texts[1][-3] + 1) % max(2, min(model.config.get_text_config().vocab_size, mask_id))]
    second = feed(2, [2, 1])
    refused = [*texts[1][:-3], *rows[1].drafts]
    plain = [_plain(model, text + [mask_id] * 2, 4) for text in (texts[0][:-2], refused)]
    for row, text in zip(rows, texts, strict=True):
        row.ids, row.drafts = list(text), []
    third = feed(1, [row.pending() for row in rows])[:, -2:]
    plain_third = [_plain(model, [*text, mask_id], 2) for text in texts]
    return relative(torch.cat([second, third], 1), torch.cat([torch.stack(plain), torch.stack(plain_third)], 1))


def far_error(model: PreTrainedModel, tokens: Tensor, mask_id: int) -> float:
    """How much a token at the last allowed position changes the tokens before it, which do not see it. Frequencies that depend on
    the largest position of a pass would change them."""
    far, tokens = (position_limit(model) or _FAR) - 1, tokens[: len(tokens) // 2]
    near = torch.arange(len(tokens), device=tokens.device)
    positions = torch.cat([near, near.new_tensor([far])])[None]
    ids = torch.cat([tokens, tokens[:1]])[None]
    # A mask of ones, so that the row is not taken for packed samples.
    options = {"attention_mask": torch.ones_like(ids), "use_cache": False}
    logits = model(input_ids=ids, position_ids=positions, **options).logits[0, :-1]
    return relative(logits, _plain(model, tokens.tolist(), len(tokens)))
