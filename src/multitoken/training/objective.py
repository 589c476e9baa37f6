"""Student-forced online distillation (arXiv 2602.06019, eq. 3-4), and its variants, one option each.

The student proposes a block in one pass. The frozen teacher reads the student's *own* block and says at each position
what it would have written there. That is the label. A label from a fixed text does not know what the student has chosen:
if the student continues "the zookeeper fed the" with *panda* and the text with *lion*, the text's labels teach it the
mixture "panda meat". The teacher's labels follow the student's choice.

One shortcut is exact. With `until_disagreement`, and responses that the teacher itself wrote greedily, every counted
position has seen only the teacher's own tokens. Its label *is* then the text's next token, so labels="data" is the same
objective without a teacher pass.

Where the text was sampled from the teacher, or written by another author, its token is one of many that may follow. What
is taught there is the teacher's distribution after the text's own tokens (KL divergence). In the weights of "reach", such
a position counts with the share of probability that both distributions have in common, which bounds how often a draft
with the position's own noise is accepted.

Limits: labels after a wrong proposal are right for a prefix that decoding will never keep. The paper trains on them
nevertheless; `until_disagreement` leaves them out.

Shapes: B rows, M block slots (the positions of all blocks, one after the other), N blocks, V vocabulary, T real tokens.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from multitoken.decoding.blocks import REAL, BlockBatch, pack_blocks
from multitoken.decoding.draft_head import DraftHead, columns

from .head import Moved
from .left_to_right import moved_by, propose
from .passes import Hidden, Passes

_ALONE = 0.3  # weight of the loss without the draft head, which is added to the loss with it


@dataclass(frozen=True)
class Objective:
    """What is learned. The defaults are the paper's.

    labels: "online", the teacher on the student's block; "data", the text's own next tokens (the offline baseline).
    teacher: "hard", cross-entropy to the teacher's argmax; "soft", KL to its distribution.
    until_disagreement: a block's loss ends with its first position where proposal and label differ.
    weights: "even", or "reach": each position counts with the student's own probability that all positions before it are
        right, which is the probability that decoding gets there (the anchor's token is always accepted). The gradient
        does not pass through the weights.
    foreign: the text was not written by the teacher. With labels="data" it is then taught like a sampled text.
    next_token_weight: weight of KL(teacher || student) on the real tokens, which preserves next-token behaviour.
    """

    labels: Literal["online", "data"] = "online"
    teacher: Literal["hard", "soft"] = "hard"
    until_disagreement: bool = False
    weights: Literal["even", "reach"] = "even"
    foreign: bool = False
    next_token_weight: float = 0.0

    @property
    def by_block(self) -> bool:
        """Whether the loss is a mean over blocks, because the number of counted positions is not known before the pass."""
        return self.until_disagreement or self.weights == "reach"


@dataclass(frozen=True)
class BlockStatistics:
    """Counts of one batch, for the log. Of `seen[j]` supervised proposals at position j, `agreed[j]` were the label."""

    agreed: Tensor  # [k_max]
    seen: Tensor  # [k_max]
    accepted: float  # mean number of leading positions of a block that agree, the anchor included
    tokens: int  # real tokens and block slots


def data_labels(batch: BlockBatch) -> Tensor:
    """The text's next token at each slot; after the end of the text, any token. -> [B, M]."""
    return batch.ids.gather(1, batch.target.clamp_max(batch.real - 1))


def _in_front(batch: BlockBatch) -> Tensor:
    """Index in the row of the real token before the one that each slot predicts. -> [B, M]"""
    return (batch.target - 1).clamp_max(batch.real - 1)


def within_turns(batch: BlockBatch, ends: Tensor) -> Tensor:
    """Which slots predict a token of the turn that their anchor's next token belongs to. ends [B, N] -> [B, M] bool.

    After the turn comes text of the user or of a tool, or nothing, and decoding stops there.
    """
    return batch.target < ends[:, batch.block_of]


def supervised(
    batch: BlockBatch, proposals: Tensor, labels: Tensor, eos_ids: Tensor, until_disagreement: bool
) -> Tensor:
    """Which slots count, [B, M] bool. Those after the block's first EOS (proposed or taught) do not, nor those without a
    label, nor, with `until_disagreement`, those after the first position where proposal and label differ."""
    ends = torch.isin(proposals, eos_ids) | torch.isin(labels, eos_ids)
    if until_disagreement:
        ends = ends | (proposals != labels)
    return (labels != -100) & (_sum_before(ends.long(), batch.block_of) == 0)


def reach(loss: Tensor, batch: BlockBatch) -> Tensor:
    """exp(- sum of the losses at the earlier masks of the block). If the loss is -log p of the label, this is the
    probability that all of them are right. loss [B, M] -> [B, M]."""
    return (-_sum_before(loss.masked_fill(batch.place == 0, 0.0), batch.block_of)).exp()


def _sum_before(values: Tensor, block_of: Tensor) -> Tensor:
    """The sum of the values at earlier positions of the same block. values [B, M] -> [B, M]."""
    before = values.cumsum(1) - values
    first = torch.searchsorted(block_of, block_of)  # slot at which each slot's block starts
    return before - before[:, first]


class Distillation(nn.Module):
    """One batch of blocks -> loss and statistics. `trained` is the module whose parameters train and are saved.

    Passes and teacher are not submodules, because they are not trained, wrapped or saved.
    """

    eos_ids: Tensor

    def __init__(
        self,
        trained: nn.Module,
        passes: Passes,
        *,
        objective: Objective,
        mask_id: int,
        eos_ids: list[int],
        drafter: DraftHead | None = None,
    ) -> None:
        super().__init__()
        self.trained = trained
        self._drafter = [drafter]  # in a list, like the passes: `trained` already holds it
        self.objective = objective
        self.steadiness = 1.0  # factor on `next_token_weight` at this point of the run
        self.mask_id = mask_id
        self._passes = [passes]  # in a list, so that nn.Module does not register them
        self.register_buffer("eos_ids", torch.tensor(eos_ids, dtype=torch.long), persistent=False)

    def train(self, mode: bool = True) -> "Distillation":
        """Does nothing. Dropout stays off, so that the proposals are those that decoding will see."""
        return self

    @property
    def passes(self) -> Passes:
        return self._passes[0]

    def forward(self, inputs: dict[str, Tensor]) -> tuple[Tensor, BlockStatistics]:
        """inputs: tokens [B, T], lengths [B], segments [B, T], anchors [B, N], ends [B, N] of their turns, ks [N], and
        trainable [B, T] bool: real positions whose next-token prediction may be trained; sampled [B, N] bool: blocks whose
        text the teacher sampled.

        The block loss is divided by a number that is known before the forward pass: the number of slots, or the number of
        blocks where not all slots count. Accumulated micro-batches of equal shape then make exactly one large batch. (The
        loss on real tokens is a mean over samples. With packed rows, their number differs between micro-batches.)
        """
        objective, passes = self.objective, self.passes
        batch = self._lay_out(inputs)
        ours = passes.propose(batch)
        online = objective.labels == "online"
        sampled = (inputs["sampled"][:, batch.block_of] | objective.foreign) & (not online)
        proposals, moved = self._propose(batch, ours.blocks)
        asks = online or objective.next_token_weight or bool(sampled.any())
        theirs = passes.read(batch, proposals if online else None) if asks else None
        labels = self._labels(batch, theirs, inputs["ends"])
        counted = supervised(batch, proposals, labels, self.eos_ids, objective.until_disagreement)
        taught = None
        if theirs is not None and online:
            taught = theirs.blocks
        elif theirs is not None and bool(sampled.any()):
            taught = theirs.real.gather(1, _in_front(batch)[..., None].expand(-1, -1, theirs.real.shape[-1]))
        soft = torch.full_like(counted, objective.teacher == "soft") | sampled
        places = len(batch.ids) * (len(batch.ks) if objective.by_block else batch.slots)
        loss = self._loss(ours.blocks, moved, labels, counted, soft, taught, batch) / places
        if moved is not None:  # decoding takes the candidates at a position from the logits without the draft head
            loss = loss + _ALONE * self._loss(ours.blocks, None, labels, counted, soft, taught, batch) / places
        if objective.next_token_weight:
            assert theirs is not None
            trainable = inputs["trainable"]
            weights = _mean_of_means(trainable, inputs["segments"])
            drift, _ = passes.student.divergence_from(passes.teacher, theirs.real[trainable], ours.real[trainable])
            loss = loss + self.steadiness * objective.next_token_weight * (drift * weights).sum()
        return loss, _statistics(batch, proposals, labels, self.eos_ids)

    def _propose(self, batch: BlockBatch, hidden: Tensor) -> tuple[Tensor, Moved | None]:
        """Proposals [B, M], and the draft head's corrections. With labels from the text, the draft head is given the text's
        earlier tokens. Up to the first wrong proposal, these are the student's own."""
        student, (drafter,) = self.passes.student, self._drafter
        if drafter is None:
            return student.best(hidden), None
        moves = columns(drafter, student.model)
        if self.objective.labels == "data":
            moved = moved_by(drafter, moves, student, batch, hidden, data_labels(batch))
            return student.best(hidden, moved), moved
        proposals = propose(drafter, moves, student, batch, hidden)
        return proposals, moved_by(drafter, moves, student, batch, hidden, proposals)

    def _loss(
        self,
        hidden: Tensor,
        moved: Moved | None,
        labels: Tensor,
        counted: Tensor,
        soft: Tensor,
        taught: Tensor | None,
        batch: BlockBatch,
    ) -> Tensor:
        """The sum over counted slots: cross-entropy to the label or, where `soft`, the divergence from the teacher. hidden and
        taught are [B, M, D], all others [B, M]."""
        student, teacher = self.passes.student, self.passes.teacher
        hard = counted & ~soft
        by_place = hidden.new_zeros(counted.shape, dtype=torch.float32)
        surprise = torch.zeros_like(by_place)  # - log of the probability that decoding gets past the slot
        if bool(hard.any()):
            values = student.cross_entropy(hidden[hard], labels[hard], moved and moved.at(hard))
            by_place = by_place.masked_scatter(hard, values)
            surprise = surprise.masked_scatter(hard, values.detach())
        if bool((counted & soft).any()):
            assert taught is not None
            at = counted & soft
            values, common = student.divergence_from(teacher, taught[at], hidden[at], moved and moved.at(at))
            by_place = by_place.masked_scatter(at, values)
            surprise = surprise.masked_scatter(at, -common.clamp_min(1e-9).log())
        return (by_place * (reach(surprise, batch) if self.objective.weights == "reach" else 1.0)).sum()

    @torch.no_grad()
    def examine(self, inputs: dict[str, Tensor]) -> "Examined":
        """What is proposed, with what confidence, and what would have been right. inputs: as for `forward`."""
        batch = self._lay_out(inputs)
        ours = self.passes.propose(batch)
        _, moved = self._propose(batch, ours.blocks)
        proposals, confidences = self.passes.student.best_and_sure(ours.blocks, moved)
        online = self.objective.labels == "online"
        may_drift = self.passes.student is not self.passes.teacher
        theirs = self.passes.read(batch, proposals if online else None) if online or may_drift else None
        kept = None
        if theirs is not None and may_drift:
            at = inputs["trainable"]
            kept = self.passes.student.best(ours.real[at]) == self.passes.teacher.best(theirs.real[at])
        return Examined(batch, proposals, confidences, self._labels(batch, theirs, inputs["ends"]), kept)

    def _labels(self, batch: BlockBatch, theirs: Hidden | None, ends: Tensor) -> Tensor:
        """The right token at each slot, -100 after the end of its turn. -> [B, M]."""
        if self.objective.labels == "online":
            assert theirs is not None
            labels = self.passes.teacher.best(theirs.blocks)
        else:
            labels = data_labels(batch)
        return labels.masked_fill(~within_turns(batch, ends), -100)

    def _lay_out(self, inputs: dict[str, Tensor]) -> BlockBatch:
        return pack_blocks(
            inputs["tokens"],
            inputs["lengths"].tolist(),
            inputs["anchors"],
            inputs["ks"].tolist(),
            self.mask_id,
            segments=inputs["segments"],
        )


@dataclass(frozen=True)
class Examined:
    """All [B, M], a value for each slot. `kept` [number]: for each real token that may be trained, whether the next token
    is still the original's; None where the student's next tokens are the original's by construction."""

    batch: BlockBatch
    proposals: Tensor
    confidences: Tensor
    labels: Tensor
    kept: Tensor | None


def _mean_of_means(chosen: Tensor, segments: Tensor) -> Tensor:
    """Weights of the chosen positions for the mean over samples of the mean in each sample. Both [B, T] -> [number]."""
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
