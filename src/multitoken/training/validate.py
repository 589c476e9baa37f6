"""What the model does on prompts it was not trained on: how often each place of a block is right, and how fast Exact
would be with it, without decoding anything."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from multitoken.decoding.policies import Exact

from .encoding import Sample
from .objective import Distillation, supervised
from .stream import BlockStream, StreamOptions, collate

THRESHOLDS = (0.3, 0.5, 0.7, 0.9)
_DEFAULT = Exact().threshold
_SHOWN = 8  # places, in a sentence and in logs


@dataclass(frozen=True)
class Validation:
    """`accepted`: mean length of a block's front that is all right, the anchor included.

    `agreement[j]`: share of right tokens at place j, where all places before it were right.
    `tokens_per_step`: by threshold, what `Exact` may be expected to reach (see `expected_tokens_per_step`).
    """

    blocks: int
    accepted: float
    agreement: list[float]
    tokens_per_step: dict[float, float]

    def __str__(self) -> str:
        shares = " ".join(f"{share:.0%}" for share in self.agreement[:_SHOWN])
        return (
            f"{self.accepted:.2f} tokens of a block are right on {self.blocks} unseen blocks (by place: {shares} ...); "
            f"Exact {_DEFAULT:g} may be expected to emit {self.tokens_per_step[_DEFAULT]:.2f} a step"
        )

    def metrics(self) -> dict[str, float]:
        """Numbers for a log, by name."""
        named = {"accepted": self.accepted}
        named |= {f"tokens_per_step_{threshold:g}": rate for threshold, rate in self.tokens_per_step.items()}
        return named | {f"agreement_{place}": share for place, share in enumerate(self.agreement[:_SHOWN])}


@torch.no_grad()
def validate(
    distillation: Distillation, samples: list[Sample], options: StreamOptions, most_rows: int = 128
) -> Validation | None:
    """Blocks of the greatest length at random anchors of at most `most_rows` samples; None where there are none.

    128 rows know a mean length to a few hundredths.
    """
    samples = [sample for sample in samples if not sample.sampled] or samples  # a draw has no right token
    rows = min(options.rows_per_step, len(samples))
    if not rows:
        return None
    steps = max(1, min(len(samples), most_rows) // rows)
    stream = BlockStream(samples, replace(options, rows_per_step=rows, fixed_k=True, growth=0, pack=False), steps)
    device = next(distillation.parameters()).device
    right, reached, confidence = [], [], []
    for step in range(steps):
        inputs = collate([stream[step * rows + i] for i in range(rows)])
        seen = distillation.examine({name: tensor.to(device) for name, tensor in inputs.items()})
        counted = supervised(seen.batch, seen.proposals, seen.labels, distillation.eos_ids, until_disagreement=False)
        by_block = (-1, options.k_max)
        right.append((counted & (seen.proposals == seen.labels)).reshape(by_block).cpu())
        reached.append(counted.reshape(by_block).cpu())
        confidence.append(seen.confidences.masked_fill(~counted, 0.0).reshape(by_block).cpu())
    return summarise(torch.cat(right), torch.cat(reached), torch.cat(confidence))


def summarise(right: Tensor, reached: Tensor, confidence: Tensor) -> Validation:
    """All [blocks, k]: the proposal is right; the text has not ended before it; its probability."""
    front = right.long().cumprod(1)
    before = torch.cat([torch.ones_like(front[:, :1]), front[:, :-1]], 1)
    shares = front.sum(0) / (before * reached).sum(0).clamp_min(1)
    return Validation(
        blocks=len(right),
        accepted=float(front.sum(1).double().mean()),
        agreement=[round(share, 4) for share in shares.tolist()],
        tokens_per_step={t: round(expected_tokens_per_step(right, confidence, t), 4) for t in THRESHOLDS},
    )


def expected_tokens_per_step(right: Tensor, confidence: Tensor, threshold: float) -> float:
    """Of `Exact`, were its anchors spread as evenly as those here. right, confidence [blocks, k]; place 0 is the anchor.

    A block with c confident drafts of which the first a are right costs one step, which emits a + 1 tokens; where a < c
    that step's masks stood behind a wrong token, and a second step emits one token without drafts.
    """
    drafts = (confidence[:, 1:] >= threshold).long().cumprod(1)
    confirmed = (drafts * right[:, 1:]).cumprod(1).sum(1)
    wasted = (confirmed < drafts.sum(1)).long()
    return float((1 + confirmed + wasted).sum() / (1 + wasted).sum())
