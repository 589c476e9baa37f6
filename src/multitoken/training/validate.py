"""Validation on prompts that the model was not trained on: how often each position of a block is right, how fast Exact
would be at several thresholds (without decoding anything), and how much of the original's next-token behaviour is left."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .encoding import Sample
from .objective import Distillation, supervised
from .stream import Row, StreamOptions, collate

THRESHOLDS = (0.3, 0.5, 0.6, 0.7, 0.8, 0.9)
_SHOWN = 8  # positions, in a sentence and in logs


@dataclass(frozen=True)
class Validation:
    """`accepted`: mean number of a block's leading tokens that are all right, the anchor included.

    `agreement[j]`: share of right tokens at position j, where all positions before it were right.
    `tokens_per_step`: by threshold, what `Exact` is expected to reach (see `expected_tokens_per_step`).
    `kept`: share of next tokens that are still the original's; None where nothing can be lost (method gated).
    """

    blocks: int
    accepted: float
    agreement: list[float]
    tokens_per_step: dict[float, float]
    kept: float | None = None

    @property
    def threshold(self) -> float:
        """The one at which Exact is expected to be fastest."""
        return max(self.tokens_per_step, key=lambda threshold: self.tokens_per_step[threshold])

    @property
    def drift(self) -> float:
        """Share of next tokens that are no longer the original's."""
        return 1 - self.kept if self.kept is not None else 0.0

    def __str__(self) -> str:
        shares = " ".join(f"{share:.0%}" for share in self.agreement[:_SHOWN])
        lost = f"; {self.kept:.1%} of next tokens are still the original's" if self.kept is not None else ""
        return (
            f"{self.accepted:.2f} tokens of a block are right on {self.blocks} unseen blocks (by position: {shares} ...); "
            f"Exact {self.threshold:g} is expected to emit {self.tokens_per_step[self.threshold]:.2f} tokens per step{lost}"
        )

    def metrics(self) -> dict[str, float]:
        """Numbers for a log, by name."""
        named = {"accepted": self.accepted, "tokens_per_step": self.tokens_per_step[self.threshold]}
        if self.kept is not None:
            named["kept"] = self.kept
        named |= {f"tokens_per_step_{threshold:g}": rate for threshold, rate in self.tokens_per_step.items()}
        return named | {f"agreement_{place}": share for place, share in enumerate(self.agreement[:_SHOWN])}


@dataclass(frozen=True)
class Walk:
    """A block at each of several successive positions of a text. All are [positions, k]: whether the proposal is right;
    whether the text has not ended before it; the probability of the proposal."""

    right: Tensor
    reached: Tensor
    confidence: Tensor


@torch.no_grad()
def validate(
    distillation: Distillation,
    samples: Sequence[Sample],
    options: StreamOptions,
    most_samples: int = 32,
    most_places: int = 128,
) -> Validation | None:
    """Validate with blocks of full length at up to `most_places` successive positions of at most `most_samples` samples.
    None if there are no samples. `options.rows_per_step` is the rows of one pass."""
    rng = random.Random(f"{options.seed}:validation")
    samples = [sample for sample in samples if not sample.sampled] or samples  # a sampled text has no one right token
    chosen = sorted(rng.sample(samples, min(most_samples, len(samples))), key=lambda sample: len(sample.ids))
    walks: list[Walk] = []
    kept: list[Tensor] = []
    for start in range(0, len(chosen), options.rows_per_step):
        rows = [Row.of([sample], options.train_on) for sample in chosen[start : start + options.rows_per_step]]
        places = [_successive(list(row.end_of), most_places, rng) for row in rows]
        found, same = _look(distillation, rows, places, options)
        walks += found
        kept += same
    return summarise(walks, float(torch.cat(kept).double().mean()) if kept else None) if walks else None


def _successive(places: list[int], most: int, rng: random.Random) -> list[int]:
    start = rng.randrange(max(1, len(places) - most + 1))
    return places[start : start + most]


def _look(
    distillation: Distillation, rows: list[Row], places: list[list[int]], options: StreamOptions
) -> tuple[list[Walk], list[Tensor]]:
    """The walks over some rows, `options.blocks` positions at a time, and whether their next tokens are the original's."""
    device = next(distillation.parameters()).device
    ks = [options.k_max] * options.blocks
    parts: list[Walk] = []
    kept: list[Tensor] = []
    for start in range(0, max(map(len, places)), options.blocks):
        anchors = [own[start : start + options.blocks] for own in places]
        # All rows need the same number of blocks: the last position is repeated here and left out below.
        full = [part + [own[-1]] * (options.blocks - len(part)) for part, own in zip(anchors, places, strict=True)]
        inputs = collate([row.item(part, ks) for row, part in zip(rows, full, strict=True)])
        seen = distillation.examine({name: tensor.to(device) for name, tensor in inputs.items()})
        counted = supervised(seen.batch, seen.proposals, seen.labels, distillation.eos_ids, until_disagreement=False)
        shape = (len(rows), options.blocks, options.k_max)
        right = (counted & (seen.proposals == seen.labels)).reshape(shape).cpu()
        confidence = seen.confidences.masked_fill(~counted, 0.0).reshape(shape).cpu()
        parts.append(Walk(right, counted.reshape(shape).cpu(), confidence))
        if seen.kept is not None and not start:
            kept.append(seen.kept.cpu())
    right, reached, confidence = (
        torch.cat([getattr(part, name) for part in parts], 1) for name in ("right", "reached", "confidence")
    )
    walks = [
        Walk(right[i, : len(own)], reached[i, : len(own)], confidence[i, : len(own)]) for i, own in enumerate(places)
    ]
    return walks, kept


def summarise(walks: Sequence[Walk], kept: float | None = None) -> Validation:
    right, reached = torch.cat([walk.right for walk in walks]), torch.cat([walk.reached for walk in walks])
    front = right.long().cumprod(1)
    before = torch.cat([torch.ones_like(front[:, :1]), front[:, :-1]], 1)
    shares = front.sum(0) / (before * reached).sum(0).clamp_min(1)
    return Validation(
        blocks=len(right),
        accepted=float(front.sum(1).double().mean()),
        agreement=[round(share, 4) for share in shares.tolist()],
        tokens_per_step={t: round(expected_tokens_per_step(walks, t), 4) for t in THRESHOLDS},
        kept=None if kept is None else round(kept, 4),
    )


def expected_tokens_per_step(walks: Sequence[Walk], threshold: float) -> float:
    """Tokens per step of `Exact`, if it walks over the texts from block to block as decoding does. Where many tokens are
    accepted, it needs few blocks.

    A block with c confident drafts, of which the first a are right, costs one step, which emits a + 1 tokens. If a < c,
    that step's masks came after a wrong token, and a second step emits one token without drafts.
    """
    emitted = steps = 0
    for walk in walks:
        drafts = (walk.confidence[:, 1:] >= threshold).long().cumprod(1)
        confirmed = (drafts * walk.right[:, 1:]).cumprod(1).sum(1)
        wasted = (confirmed < drafts.sum(1)).long()
        tokens, passes, place = (1 + confirmed + wasted).tolist(), (1 + wasted).tolist(), 0
        while place < len(tokens):
            emitted += tokens[place]
            steps += passes[place]
            place += tokens[place]
    return emitted / steps
