"""One step: one forward pass over a batch of rows, and what each row emits from it.

A row feeds [pending real tokens | drafts | masks]. The logits at the last pending token and at each draft are the
model's own next-token choices: they confirm drafts one by one. If all drafts hold, the block (the choice after the last
of them, and the masks) is good, and the policy says how much of it is kept. If one fails, the model's own token stands
in its place and the masks, conditioned on a wrong token, are dropped.

Shapes: B rows, S tokens fed (left-padded), W logits wanted (the last W), V vocabulary.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import LogitsProcessorList, PreTrainedModel

from .attention import AttentionRule
from .cache import SlotCache
from .policies import Policy
from .records import Chunk, DecodingError
from .sampling import Sampling


@dataclass
class Row:
    """One sequence on its way. `ids` holds the prompt and everything emitted; its first `cached` tokens are in slots."""

    index: int
    ids: list[int]
    remaining: int  # tokens that may still be emitted
    policy: Policy
    cached: int = 0
    drafts: list[int] = field(default_factory=list)
    finished: bool = False

    def masks(self, max_positions: int | None, eos_ids: frozenset[int]) -> int:
        """How many masks to feed: never more than could still be emitted, nor past the model's last position."""
        if self.drafts and self.drafts[-1] in eos_ids:
            return 0
        assert self.policy.k is not None
        # A verified mask becomes a draft, and the last token of all is never a draft: it comes out of the confirmation.
        room = self.remaining - len(self.drafts) - (2 if self.policy.verifies else 1)
        if max_positions is not None:
            room = min(room, max_positions - len(self.ids) - len(self.drafts))
        return max(0, min(self.policy.k - 1, room))

    def take(self, tokens: list[int], confidences: list[float], eos_ids: frozenset[int]) -> Chunk:
        """Advance by one step's choices: [len(drafts) + 1 + masks] tokens and confidences, the last real token's first."""
        held = 0
        while held < len(self.drafts) and tokens[held] == self.drafts[held]:
            held += 1
        emitted, cached = tokens[: held + 1], len(self.ids) + held
        drafts: list[int] = []
        if held == len(self.drafts):
            kept = self.policy.kept(confidences[held:])
            behind = tokens[held + 1 : held + kept]
            if self.policy.verifies:
                drafts = behind
            else:
                emitted += behind
        for i, token in enumerate(emitted):
            if token in eos_ids:
                emitted, self.finished = emitted[: i + 1], True
                break
        for i, token in enumerate(drafts):
            if token in eos_ids:
                drafts = drafts[: i + 1]
                break
        self.cached = cached
        self.drafts = drafts
        self.ids = self.ids + emitted
        self.remaining -= len(emitted)
        self.finished = self.finished or self.remaining == 0
        return Chunk(self.index, tuple(emitted), tuple(confidences[: len(emitted)]))


@dataclass
class State:
    """A batch on its way: the model, its cache, and the rows that are not finished."""

    model: PreTrainedModel
    rule: AttentionRule
    cache: SlotCache
    rows: list[Row]
    mask_id: int | None
    eos_ids: frozenset[int]
    max_positions: int | None
    processors: LogitsProcessorList
    sampling: Sampling | None = None


@torch.inference_mode()
def step(state: State) -> list[Chunk]:
    """One forward pass; one chunk per row, in the rows' order. Finished rows stay until `drop_finished`.

    Raises `DecodingError` where the logits are not numbers.
    """
    feeds, wanted = [], []
    for row in state.rows:
        masks = row.masks(state.max_positions, state.eos_ids) if state.mask_id is not None else 0
        feeds.append([*row.ids[row.cached :], *row.drafts, *[state.mask_id or 0] * masks])
        wanted.append(len(row.drafts) + 1 + masks)
    logits = forward_rows(state, feeds, max(wanted))
    if state.mask_id is not None and state.mask_id < logits.shape[-1]:  # a gated adapter's id may lie beyond
        logits[..., state.mask_id] = -torch.inf
    top = logits.argmax(-1)
    confidences = (logits.gather(-1, top[..., None])[..., 0] - logits.logsumexp(-1)).exp()
    chosen, sure = top.tolist(), confidences.tolist()
    chunks = []
    for i, row in enumerate(state.rows):
        tokens, certainty = chosen[i][-wanted[i] :], sure[i][-wanted[i] :]
        if any(c != c for c in certainty):
            raise DecodingError(f"the model's logits are not numbers at position {len(row.ids)} of row {row.index}")
        if state.processors or state.sampling:
            tokens = _choose(state, row, logits[i, -wanted[i] :])
        chunks.append(row.take(tokens, certainty, state.eos_ids))
    return chunks


def drop_finished(state: State) -> None:
    """Let finished rows leave the batch and its cache."""
    alive = [i for i, row in enumerate(state.rows) if not row.finished]
    if len(alive) < len(state.rows):
        state.rows = [state.rows[i] for i in alive]
        if alive:
            state.cache.select(alive)


def forward_rows(state: State, feeds: list[list[int]], keep: int) -> Tensor:
    """Float32 logits [B, keep, V] of the last `keep` fed tokens of each row."""
    device = state.model.device
    ends = [row.cached + len(feed) for row, feed in zip(state.rows, feeds, strict=True)]
    view, width = max(ends), max(map(len, feeds))
    if len(feeds) == 1:
        start = view - width
        ids = torch.tensor(feeds, device=device)
        positions = torch.arange(start, view, device=device)[None]
        masks = state.rule.contiguous(start, width)
        state.cache.place(view)
    else:  # left-padded: the wanted logits of all rows are the last ones; padding writes to the scratch slot
        pads = [width - len(feed) for feed in feeds]
        ids = torch.tensor([[0] * p + feed for p, feed in zip(pads, feeds, strict=True)], device=device)
        ends_column = torch.tensor(ends, device=device)[:, None]
        positions = ends_column - width + torch.arange(width, device=device)
        is_pad = torch.arange(width, device=device) < torch.tensor(pads, device=device)[:, None]
        positions = positions.masked_fill(is_pad, 0)
        masks = state.rule.slots(positions, view)
        state.cache.place(view, positions.masked_fill(is_pad, state.cache.scratch))
    output = state.model(
        input_ids=ids,
        attention_mask=masks,
        position_ids=positions,
        past_key_values=state.cache,
        use_cache=True,
        logits_to_keep=keep,
    )
    return output.logits[:, -keep:].float()


def _choose(state: State, row: Row, logits: Tensor) -> list[int]:
    """Tokens for one row where processors or sampling ask for more than the argmax. logits: [W, V].

    Every position is shown exactly the prefix that plain decoding would show it, drafts included.
    """
    tokens: list[int] = []
    prefix = list(row.ids)
    for j in range(logits.shape[0]):
        scores = logits[j : j + 1].clone()
        if state.processors:
            scores = state.processors(torch.tensor([prefix], device=logits.device), scores)  # pyright: ignore[reportArgumentType]
        token = state.sampling.pick(scores[0], row.index, len(prefix)) if state.sampling else int(scores[0].argmax())
        tokens.append(token)
        prefix.append(row.drafts[j] if j < len(row.drafts) else token)
    return tokens
