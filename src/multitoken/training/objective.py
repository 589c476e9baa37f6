"""Student-forced online distillation (arXiv 2602.06019, eq. 3-4), and its variants, one option each.

The student proposes a block in one pass. The frozen teacher reads the student's *own* block and says at each place what
it would have written there: that is the label. A label from a fixed text cannot know that the student, facing "the
zookeeper fed the", has chosen *panda* and not *lion*, and would teach it the mixture "panda meat"; the teacher's can.

One exact short cut: with `until_disagreement`, and responses that the teacher itself wrote greedily, every counted place
has seen only the teacher's own tokens, so its label *is* the text's next token and labels="data" is the same objective
without a teacher pass.

Limits: labels of places behind a wrong proposal are right for a prefix that decoding will never keep. The paper trains
them all the same; `until_disagreement` leaves them out.

Shapes: B rows, M block slots (all blocks' places, one behind the other), N blocks, V vocabulary, T real tokens.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from multitoken.decoding.blocks import REAL, BlockBatch, pack_blocks

from .passes import Passes


@dataclass(frozen=True)
class Objective:
    """What is learned. The defaults are the paper's.

    labels: "online", the teacher on the student's block; "data", the text's own next tokens (the offline baseline).
    teacher: "hard", cross-entropy to the teacher's argmax; "soft", KL to its distribution.
    until_disagreement: a block's loss ends with its first place where proposal and label differ.
    next_token_weight: weight of KL(teacher || student) on the real tokens, which keeps next-token behaviour in place.
    """

    labels: Literal["online", "data"] = "online"
    teacher: Literal["hard", "soft"] = "hard"
    until_disagreement: bool = False
    next_token_weight: float = 0.0


@dataclass(frozen=True)
class BlockStatistics:
    """Counts of one batch, for the log. `agreed[j]` of `seen[j]` supervised proposals at place j were the label."""

    agreed: Tensor  # [k_max]
    seen: Tensor  # [k_max]
    accepted: float  # mean length of the agreeing front of a block, the anchor included
    tokens: int  # real ones and those of blocks


def data_labels(batch: BlockBatch) -> Tensor:
    """The text's next token at each place; behind its end, anything. -> [B, M]."""
    return batch.ids.gather(1, batch.target.clamp_max(batch.real - 1))


def within_turns(batch: BlockBatch, ends: Tensor) -> Tensor:
    """Which places predict a token of the turn that their anchor's next token belongs to. ends [B, N] -> [B, M] bool.

    Behind it come the user's words, or a tool's, or nothing; decoding stops there.
    """
    return batch.target < ends[:, batch.block_of]


def supervised(
    batch: BlockBatch, proposals: Tensor, labels: Tensor, eos_ids: Tensor, until_disagreement: bool
) -> Tensor:
    """Which places count, [B, M] bool: none behind the block's first EOS (proposed or taught), none without a label,
    and with `until_disagreement` none behind the first place where proposal and label differ."""
    ends = torch.isin(proposals, eos_ids) | torch.isin(labels, eos_ids)
    if until_disagreement:
        ends = ends | (proposals != labels)
    return (labels != -100) & ~_happened_before(ends, batch.block_of)


def _happened_before(event: Tensor, block_of: Tensor) -> Tensor:
    """True where `event` [B, M] was true at an earlier place of the same block."""
    count = event.long().cumsum(1)
    before = count - event.long()
    first = torch.searchsorted(block_of, block_of)  # slot at which each slot's block starts
    return before > before[:, first]


class Distillation(nn.Module):
    """One batch of blocks -> loss and statistics. `trained` is the module whose parameters learn: what is saved.

    Passes and teacher are not submodules: they are no part of what is trained, wrapped or saved.
    """

    _eos: Tensor

    def __init__(
        self, trained: nn.Module, passes: Passes, *, objective: Objective, mask_id: int, eos_ids: list[int]
    ) -> None:
        super().__init__()
        self.trained = trained
        self.objective = objective
        self.mask_id = mask_id
        self._passes = [passes]  # in a list: out of nn.Module's sight
        self.register_buffer("_eos", torch.tensor(eos_ids, dtype=torch.long), persistent=False)

    @property
    def passes(self) -> Passes:
        return self._passes[0]

    def forward(self, inputs: dict[str, Tensor]) -> tuple[Tensor, BlockStatistics]:
        """inputs: tokens [B, T], lengths [B], segments [B, T], anchors [B, N], ends [B, N] of their turns, ks [N], and
        trainable [B, T] bool: real positions whose next-token prediction may be trained.

        The block loss is divided by what is known before the forward pass, so that accumulated micro-batches of equal
        shape make exactly one large batch: the number of places, or, where the loss stops at a disagreement and the
        number of counted places is not known, the number of blocks. (The loss on real tokens is a mean over samples,
        which are not equally many in every micro-batch of packed rows.)
        """
        objective, passes = self.objective, self.passes
        batch = pack_blocks(
            inputs["tokens"],
            inputs["lengths"].tolist(),
            inputs["anchors"],
            inputs["ks"].tolist(),
            self.mask_id,
            segments=inputs["segments"],
        )
        ours = passes.propose(batch)
        proposals = passes.student.best(ours.blocks)
        online = objective.labels == "online"
        theirs = passes.read(batch, proposals if online else None) if online or objective.next_token_weight else None
        if online:
            assert theirs is not None
            labels = passes.teacher.best(theirs.blocks)
        else:
            labels = data_labels(batch)
        labels = labels.masked_fill(~within_turns(batch, inputs["ends"]), -100)
        counted = supervised(batch, proposals, labels, self._eos, objective.until_disagreement)
        if objective.teacher == "soft":
            assert theirs is not None
            weights = torch.ones(int(counted.sum()), device=labels.device)
            loss = passes.student.divergence_from(passes.teacher, theirs.blocks[counted], ours.blocks[counted], weights)
        else:
            loss = passes.student.cross_entropy(ours.blocks[counted], labels[counted])
        rows = batch.ids.shape[0]
        loss = loss / (rows * (len(batch.ks) if objective.until_disagreement else batch.slots))
        if objective.next_token_weight:
            assert theirs is not None
            trainable = inputs["trainable"]
            weights = _mean_of_means(trainable, inputs["segments"])
            drift = passes.student.divergence_from(
                passes.teacher, theirs.real[trainable], ours.real[trainable], weights
            )
            loss = loss + objective.next_token_weight * drift
        return loss, _statistics(batch, proposals, labels, self._eos)


def _mean_of_means(chosen: Tensor, segments: Tensor) -> Tensor:
    """Weights of the chosen places: their mean in each sample, and the mean of the samples'. Both [B, T] -> [number]."""
    rows = torch.arange(len(segments), device=segments.device)[:, None]
    _, sample, count = torch.unique(
        (rows * segments.shape[1] + segments)[chosen], return_inverse=True, return_counts=True
    )
    return 1 / (count[sample] * len(count))


def _statistics(batch: BlockBatch, proposals: Tensor, labels: Tensor, eos: Tensor) -> BlockStatistics:
    reachable = supervised(batch, proposals, labels, eos, until_disagreement=True)
    agreed = (proposals == labels) & reachable
    k_max = max(batch.ks)
    places = batch.place.expand_as(agreed)
    rows = agreed.shape[0]
    return BlockStatistics(
        agreed=torch.bincount(places[agreed], minlength=k_max),
        seen=torch.bincount(places[reachable], minlength=k_max),
        accepted=float(agreed.sum()) / (rows * len(batch.ks)),
        tokens=int((batch.block[:, : batch.real] == REAL).sum()) + rows * batch.slots,
    )
