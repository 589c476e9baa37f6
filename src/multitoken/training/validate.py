"""What the model does on prompts it was not trained on: how often each place of a block is what the teacher says."""

from dataclasses import dataclass, replace

import torch

from .encoding import Sample
from .objective import Distillation
from .stream import BlockStream, StreamOptions, collate

MOST_ROWS = 128  # enough for a mean length known to a few hundredths


@dataclass(frozen=True)
class Validation:
    """`accepted`: mean length of a block's front that is all right, which is what Exact could emit a step at best.

    `agreement[j]`: share of right tokens at place j, where all places before it were right.
    """

    blocks: int
    accepted: float
    agreement: list[float]

    def __str__(self) -> str:
        shares = " ".join(f"{share:.0%}" for share in self.agreement[:8])
        return (
            f"{self.accepted:.2f} tokens of a block are right on {self.blocks} unseen blocks (by place: {shares} ...)"
        )


@torch.no_grad()
def validate(distillation: Distillation, samples: list[Sample], options: StreamOptions) -> Validation | None:
    """Blocks of the greatest length at random anchors of at most MOST_ROWS samples; None where there are none."""
    rows = min(options.rows_per_step, len(samples))
    if not rows:
        return None
    distillation.eval()
    steps = max(1, min(len(samples), MOST_ROWS) // rows)
    stream = BlockStream(samples, replace(options, rows_per_step=rows, fixed_k=True, pack=False), steps)
    device = next(distillation.parameters()).device
    agreed, seen, accepted = torch.zeros(options.k_max), torch.zeros(options.k_max), 0.0
    for step in range(steps):
        inputs = collate([stream[step * rows + i] for i in range(rows)])
        _, statistics = distillation({name: tensor.to(device) for name, tensor in inputs.items()})
        agreed += statistics.agreed.cpu()
        seen += statistics.seen.cpu()
        accepted += statistics.accepted
    agreement = (agreed / seen.clamp_min(1)).tolist()
    return Validation(steps * rows * options.blocks, accepted / steps, [round(share, 4) for share in agreement])
