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
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from multitoken.decoding.attention import AttentionRule, Masks
from multitoken.decoding.blocks import BlockBatch, pack_blocks


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


def suppress(logits: Tensor, mask_id: int) -> Tensor:
    """Float32 logits with the mask token's column at -inf: it is never proposed, taught or emitted."""
    column = torch.arange(logits.shape[-1], device=logits.device) == mask_id
    return logits.float().masked_fill(column, -torch.inf)


def propose(logits: Tensor) -> Tensor:
    """The student's own block: argmax at each place. [B, M, V] -> [B, M]."""
    return logits.detach().argmax(-1)


def data_labels(batch: BlockBatch, lengths: Tensor) -> Tensor:
    """The text's next token at each place, -100 behind its end. -> [B, M]."""
    target = batch.positions[:, batch.real :] + 1
    inside = target < lengths[:, None]
    labels = batch.ids.gather(1, target.clamp_max(batch.real - 1))
    return labels.masked_fill(~inside, -100)


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


def block_loss(
    student_logits: Tensor, teacher_logits: Tensor | None, labels: Tensor, counted: Tensor, objective: Objective
) -> Tensor:
    """Sum over the counted places. student_logits, teacher_logits [B, M, V] with the mask column at -inf."""
    if objective.teacher == "soft":
        assert teacher_logits is not None
        losses = _kl(teacher_logits, student_logits)
    else:
        losses = F.cross_entropy(student_logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="none")
        losses = losses.view(labels.shape)
    return torch.where(counted, losses, 0.0).sum()


def _kl(teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
    """KL(teacher || student) over the last axis; columns at -inf in both add nothing."""
    log_p, log_q = teacher_logits.log_softmax(-1), student_logits.log_softmax(-1)
    terms = log_p.exp() * (log_p - log_q)
    return torch.where(log_p == -torch.inf, 0.0, terms).sum(-1)


class Distillation:
    """One batch of blocks -> loss and statistics, with a student, a frozen teacher, and an objective."""

    def __init__(
        self, teacher: PreTrainedModel, rule: AttentionRule, *, objective: Objective, mask_id: int, eos_ids: list[int]
    ) -> None:
        self.teacher = teacher
        self.rule = rule
        self.objective = objective
        self.mask_id = mask_id
        self.eos_ids = eos_ids

    def pack(self, inputs: dict[str, Tensor]) -> BlockBatch:
        """The collated tensors of a step, laid out; the attention rule grows to their positions."""
        batch = pack_blocks(
            inputs["tokens"], inputs["lengths"].tolist(), inputs["anchors"], inputs["ks"].tolist(), self.mask_id
        )
        self.rule.grow(int(batch.positions.max()) + 1)
        return batch

    def __call__(
        self, student: torch.nn.Module, batch: BlockBatch, lengths: Tensor, trainable: Tensor
    ) -> tuple[Tensor, BlockStatistics]:
        """lengths [B]; trainable [B, T] bool: real positions whose next-token prediction may be trained.

        The block loss is divided by what is known before the forward pass, so that accumulated micro-batches of equal
        shape make exactly one large batch: the number of places, or, where the loss stops at a disagreement and the
        number of counted places is not known, the number of blocks.
        """
        objective = self.objective
        masks = self.rule.packed(batch.positions, batch.rule())
        real = batch.real if objective.next_token_weight else 0  # real positions whose logits are needed
        logits = self._read(student, batch.ids, masks, batch.positions, real + batch.slots)
        blocks = logits[:, real:]
        proposals = propose(blocks)
        taught_real, taught_blocks = self._teach(batch, proposals, masks, real)
        labels = data_labels(batch, lengths) if taught_blocks is None else taught_blocks.argmax(-1)
        eos = torch.tensor(self.eos_ids, device=labels.device)
        counted = supervised(batch, proposals, labels, eos, objective.until_disagreement)
        rows = batch.ids.shape[0]
        loss = block_loss(blocks, taught_blocks, labels, counted, objective)
        loss = loss / (rows * (len(batch.ks) if objective.until_disagreement else batch.slots))
        if objective.next_token_weight:
            assert taught_real is not None
            divergence = _kl(taught_real, logits[:, :real])
            per_row = torch.where(trainable, divergence, 0.0).sum(1) / trainable.sum(1).clamp_min(1)
            loss = loss + objective.next_token_weight * per_row.mean()
        return loss, _statistics(batch, proposals, labels, eos)

    @torch.no_grad()
    def _teach(
        self, batch: BlockBatch, proposals: Tensor, masks: Masks, real: int
    ) -> tuple[Tensor | None, Tensor | None]:
        """The teacher's logits at the first `real` positions, and at the student's own blocks. None: not needed."""
        if self.objective.labels == "online":
            ids = batch.with_proposals(proposals)
            logits = self._read(self.teacher, ids, masks, batch.positions, real + batch.slots)
            return logits[:, :real], logits[:, real:]
        if real:  # the text alone
            front = (
                {kind: mask[..., :real, :real] for kind, mask in masks.items()}
                if isinstance(masks, dict)
                else masks[..., :real, :real]
            )
            return self._read(self.teacher, batch.ids[:, :real], front, batch.positions[:, :real], real), None
        return None, None

    def _read(self, model: torch.nn.Module, ids: Tensor, masks: Masks, positions: Tensor, keep: int) -> Tensor:
        """Logits [B, keep, V] of the last `keep` places, the mask token's at -inf."""
        output = model(
            input_ids=ids, attention_mask=masks, position_ids=positions, use_cache=False, logits_to_keep=keep
        )
        return suppress(output.logits[:, -keep:], self.mask_id)


def _statistics(batch: BlockBatch, proposals: Tensor, labels: Tensor, eos: Tensor) -> BlockStatistics:
    reachable = supervised(batch, proposals, labels, eos, until_disagreement=True)
    agreed = (proposals == labels) & reachable
    k_max = max(batch.ks)
    places = batch.place.expand_as(agreed)
    return BlockStatistics(
        agreed=torch.bincount(places[agreed], minlength=k_max),
        seen=torch.bincount(places[reachable], minlength=k_max),
        accepted=float(agreed.sum()) / (agreed.shape[0] * len(batch.ks)),
    )
