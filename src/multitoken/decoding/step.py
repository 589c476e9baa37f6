"""One step: one forward pass over neighbouring rows, and the tokens that each row emits from it.

A row feeds [pending real tokens | drafts | masks]. The logits at the last pending token and at each draft are the
model's own next-token choices, and they confirm the drafts one by one. If all drafts hold, the block (the choice after the
last draft, and the masks) is valid, and the policy decides how much of it is kept. If a draft fails, the model's own token
replaces it, and the masks are dropped because they are conditioned on a wrong token. If a branch follows exactly the drafts
that held, the branch is then the block.

Shapes: B rows, S tokens fed (left-padded), W logits wanted (the last W), V vocabulary.
"""

from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .attention import AttentionRule, Masks
from .branches import Branch
from .cache import SlotCache
from .compiled import CompiledLayers
from .draft_head import Drafter
from .drafting import Picks, draft_blocks
from .failures import DecodingError
from .likeliest import top_and_confidence
from .low_rank import expecting_masks
from .records import Chunk
from .recurrent import RecurrentSlots
from .row import Row
from .sampling import choose, choose_alike


@dataclass
class Batch:
    """What all rows decode with: the model, its mask token and draft head (if any), its attention rule, the cache, and the compiled
    layers (if any)."""

    model: PreTrainedModel
    mask_id: int | None
    rule: AttentionRule
    cache: SlotCache
    drafter: Drafter | None = None
    compiled: CompiledLayers | None = None


@dataclass(frozen=True)
class Feed:
    """What one row feeds: `pending` of its pending tokens, then its drafts, `masks` masks, and the masks of its branches.

    A piece of a prompt (`pending` below the row's own number) feeds no drafts and no masks, and its logits are not needed.
    """

    row: Row
    pending: int
    masks: int = 0
    branches: tuple[Branch, ...] = ()

    @property
    def whole(self) -> bool:
        return self.pending == self.row.pending()

    @property
    def wanted(self) -> int:
        return len(self.row.drafts) + 1 + self.blind if self.whole else 0

    @property
    def blind(self) -> int:
        """The number of masks in the block and in all branches."""
        return self.masks + sum(branch.masks for branch in self.branches) if self.branches else self.masks

    @property
    def width(self) -> int:
        return self.pending + (len(self.row.drafts) + self.blind if self.whole else 0)

    def block(self, held: int) -> tuple[int, int]:
        """The block after `held` confirmed drafts: (its number of masks, how many masks follow them). (0, 0) if there is none."""
        if held == len(self.row.drafts):
            return self.masks, self.blind - self.masks
        behind = self.blind - self.masks
        for branch in self.branches:
            behind -= branch.masks
            if branch.held == held:
                return branch.masks, behind
        return 0, 0

    def tokens(self, mask_id: int | None) -> list[int]:
        row = self.row
        real = row.ids[row.cached : row.cached + self.pending]
        return [*real, *row.drafts, *[mask_id or 0] * self.blind] if self.whole else real


@torch.inference_mode()
def step(batch: Batch, feeds: Sequence[Feed], first_line: int = 0) -> list[Chunk]:
    """Run one forward pass over the rows in lines first_line, first_line + 1, ... -> a chunk for each row that is fed as a whole.

    A row whose logits are not numbers, or whose processors fail, gets an `error` in place of a chunk. The other rows continue.
    """
    drafts = batch.drafter is not None and any(feed.masks for feed in feeds)
    with _heard(batch.model, drafts) as heard:
        logits = forward_rows(batch, feeds, first_line)
    # A gated adapter's mask id may be beyond the vocabulary.
    if batch.mask_id is not None and batch.mask_id < logits.shape[-1]:
        logits[..., batch.mask_id] = -torch.inf
    top, confidences = top_and_confidence(logits)
    # One transfer, so that the device is waited for once. float32 is exact for every id of a vocabulary under 16 million.
    chosen, sure = torch.stack([top.float(), confidences]).tolist()
    picks: list[Picks] = []
    scored: list[tuple[Tensor, Tensor]] = []
    before = [feed.row.cached for feed in feeds]
    together = _choose_together(feeds, logits, drafts)
    for i, feed in enumerate(feeds):
        row, n = feed.row, feed.wanted
        if not n:
            row.cached += feed.pending
            continue
        tokens, certainty = [int(token) for token in chosen[i][-n:]], sure[i][-n:]
        if any(c != c for c in certainty):
            row.error = DecodingError(f"the model's logits are not numbers at position {len(row.ids)}")
            continue
        raw = scores = logits[i, -n:]
        if row.request.processors or row.request.seed is not None:
            try:
                if i in together:
                    drawn, scores = together[i]
                    tokens, scores = drawn + tokens[len(drawn) :], torch.cat([scores, raw[len(drawn) :]])
                else:
                    tokens, scores = choose(row, raw)
            except Exception as error:  # a user's processor: its failure concerns this row only
                row.error = DecodingError(f"a logits processor failed: {type(error).__name__}: {error}")
                row.error.__cause__ = error
                continue
        masks, behind = feed.block(held := row.held(tokens))
        block = slice(n - behind - masks, n - behind)
        tokens, certainty = tokens[: held + 1] + tokens[block], certainty[: held + 1] + certainty[block]
        picks.append(Picks(i, row, len(tokens) - held - 1, -behind, tokens, certainty))
        scored.append((raw, scores))
    if batch.drafter is not None and drafts:
        draft_blocks(batch.drafter, picks, logits, confidences, heard[0])
    chunks = [
        _with_scores(pick.row, pick.row.take(pick.tokens, pick.confidences), *both)
        for pick, both in zip(picks, scored, strict=True)
    ]
    if batch.cache.recurrent is not None:
        for i, feed in enumerate(feeds):
            batch.cache.commit(first_line + i, feed.row.cached - before[i])
    return chunks


def _choose_together(feeds: Sequence[Feed], logits: Tensor, drafts: bool) -> dict[int, tuple[list[int], Tensor]]:
    """Tokens and scores, by row index, of the rows that do not choose greedily and look at scores only. Rows that choose in the same
    way are handled in one call. drafts: a draft head chooses at the masks, so masks are left out unless their scores are kept."""
    groups: dict[Hashable, list[int]] = {}
    for i, feed in enumerate(feeds):
        request = feed.row.request
        if feed.wanted and (request.processors or request.seed is not None) and (way := feed.row.way) is not None:
            groups.setdefault(way, []).append(i)
    found: dict[int, tuple[list[int], Tensor]] = {}
    for group in groups.values():
        mine = [feeds[i] for i in group]
        ends = [logits.shape[1] - (feed.blind if drafts and not feed.row.request.keep_scores else 0) for feed in mine]
        places = [
            logits[i, logits.shape[1] - feed.wanted : end] for i, feed, end in zip(group, mine, ends, strict=True)
        ]
        try:
            found |= zip(group, choose_alike([feed.row for feed in mine], places), strict=True)
        except Exception:  # `step` then chooses for each row alone, so that only the row with the bad scores fails
            continue
    return found


@contextmanager
def _heard(model: PreTrainedModel, listen: bool) -> Iterator[list[Tensor]]:
    """Record the input of the output matrix: [B, W, D], the hidden states of the wanted positions."""
    heard: list[Tensor] = []
    output: Any = model.get_output_embeddings()
    hook = output.register_forward_pre_hook(lambda _, args: heard.append(args[0])) if listen else None
    try:
        yield heard
    finally:
        if hook is not None:
            hook.remove()


def _with_scores(row: Row, chunk: Chunk, logits: Tensor, scores: Tensor) -> Chunk:
    if not row.request.keep_scores:
        return chunk
    n = len(chunk.token_ids)
    return Chunk(
        chunk.row,
        chunk.token_ids,
        chunk.confidences,
        finish=chunk.finish,
        logits=logits[:n].clone(),
        scores=scores[:n].clone(),
    )


def forward_rows(batch: Batch, feeds: Sequence[Feed], first_line: int = 0) -> Tensor:
    """Float32 logits [B, W, V] of the last W fed tokens of each row. W is the most that any row wants, and at least 1."""
    device = batch.model.device
    fed = [feed.tokens(batch.mask_id) for feed in feeds]
    keep = max(1, *(feed.wanted for feed in feeds)) if len(feeds) > 1 else max(1, feeds[0].wanted)
    ends = [feed.row.cached + feed.width for feed in feeds]
    view, width = max(ends), max(map(len, fed))
    masks = [feed.blind if feed.whole else 0 for feed in feeds]
    compiled = batch.compiled
    if compiled is not None and not (all(feed.row.started for feed in feeds) and (width == 1 or any(masks))):
        compiled = None  # graphs exist for passes with masks and for one token per row, not for prompts
    if len(feeds) == 1 and compiled is None:
        ids = torch.tensor(fed, device=device)
        positions = torch.arange(view - width, view, device=device)[None]
        batch.cache.place(view, first=first_line)
    else:  # left-padded: the wanted logits of all rows are the last ones; padding writes to the scratch slot
        pads = torch.tensor([width - len(tokens) for tokens in fed], device=device)[:, None]
        ids = torch.tensor([[0] * (width - len(tokens)) + tokens for tokens in fed], device=device)
        places = torch.arange(width, device=device)
        is_pad = places < pads
        positions = torch.tensor(ends, device=device)[:, None] - width + places
        positions = positions.masked_fill(is_pad, 0)
        batch.cache.place(view, positions.masked_fill(is_pad, batch.cache.scratch), first_line)
    if batch.cache.recurrent is not None:
        _place_recurrent(batch.cache.recurrent, feeds, first_line, device)
    acting = compiled.acting() if compiled is not None else nullcontext()
    if any(feed.branches for feed in feeds):
        positions, look = _with_branches(batch.rule, feeds, width, view, device)
    else:
        look = batch.rule.slots(positions, view)
    with expecting_masks(batch.model, masks, ids if compiled is not None else None), acting:
        output = batch.model(
            input_ids=ids,
            attention_mask=look,
            position_ids=positions,
            logits_to_keep=keep,
            **batch.cache.inputs,
        )
    return output.logits[:, -keep:].float()


def _with_branches(
    rule: AttentionRule, feeds: Sequence[Feed], width: int, view: int, device: torch.device
) -> tuple[Tensor, Masks]:
    """Positions [B, S] and the attention mask of a pass with branches. The masks of a branch are in slots after everything else,
    which no later step reads. Their positions follow the drafts that the branch follows. They see the row up to the last of
    these drafts, and each other."""
    rows, ends = len(feeds), torch.tensor([[feed.row.cached + feed.width] for feed in feeds])
    slots = torch.arange(view)
    keys = slots.repeat(rows, 1)
    own = ends - width + torch.arange(width)  # each token's slot
    stands = own.clamp_min(0)  # padding may come before slot 0, and its output is not used
    last, again = (
        stands.clone(),
        torch.full((rows, width), view),
    )  # a token sees the slots up to `last`, and those from `again` to its own
    for i, feed in enumerate(feeds):
        slot = feed.row.cached + feed.width - (feed.blind - feed.masks)
        for branch in feed.branches:
            front = len(feed.row.ids) + branch.held
            here = torch.arange(front, front + branch.masks)
            at = slot - int(own[i, 0])
            keys[i, slot : slot + branch.masks] = here
            stands[i, at : at + branch.masks] = here
            last[i, at : at + branch.masks] = front - 1
            again[i, at : at + branch.masks] = slot
            slot += branch.masks
    mine = (slots <= last[..., None]) | ((slots >= again[..., None]) & (slots <= own[..., None]))
    stands, keys, mine = (part.to(device) for part in (stands, keys, mine))
    return stands, rule.look_up(stands[:, :, None], keys[:, None, :], mine)


def _place_recurrent(recurrent: RecurrentSlots, feeds: Sequence[Feed], first_line: int, device: torch.device) -> None:
    for i, feed in enumerate(feeds):
        if not feed.row.cached:
            recurrent.forget(first_line + i)  # the state of the row that had the line before
    recurrent.place(first_line, [feed.pending for feed in feeds], [feed.width for feed in feeds], device)
