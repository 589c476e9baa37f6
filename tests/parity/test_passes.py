"""Several samples in one row give the same as samples alone, and prefixes in chunks the same as whole prefixes. Compared are
a training step's hidden states, proposals, loss and gradients, for both ways to adapt."""

import copy

import pytest
import torch
from torch import nn

from multitoken.decoding.attention import AttentionRule
from multitoken.decoding.blocks import pack_blocks
from multitoken.decoding.gate import GatedAdapter, adaptable_layers
from multitoken.training import passes as passes_module
from multitoken.training.head import Head
from multitoken.training.objective import Distillation, Objective
from multitoken.training.passes import GatedPasses, PackedPasses
from multitoken.training.stream import collate
from tests.parity.families import EOS, MASK, SUPPORTED

FAMILIES = ["llama", "mistral, sliding", "gemma2, sliding and full, eager", "gpt2"]
KS = (4, 2, 3)
LENGTHS = (17, 9, 11, 5)
ANCHORS = ((2, 15, 9), (0, 7, 3), (9, 1, 4), (3, 2, 0))


def step(family: str, method: str, objective: Objective) -> Distillation:
    """A student that differs from its teacher. In float64, 1e-5 is far above rounding and far below the effect of a
    wrong mask."""
    teacher = SUPPORTED[family]().double().requires_grad_(False)
    torch.manual_seed(3)
    if method == "full":
        student = copy.deepcopy(teacher).requires_grad_(True)
        for parameter in student.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)
        passes = PackedPasses(Head(student, MASK), Head(teacher, MASK), AttentionRule(teacher))
        return Distillation(student, passes, objective=objective, mask_id=MASK, eos_ids=[EOS])
    adapter = GatedAdapter(teacher, mask_id=MASK, rank=4, layers=adaptable_layers(teacher)).double()
    for parameter in adapter.parameters():
        nn.init.normal_(parameter, std=0.3)
    adapter.attach(teacher)
    passes = GatedPasses(Head(teacher, MASK), AttentionRule(teacher))
    return Distillation(adapter, passes, objective=objective, mask_id=MASK, eos_ids=[EOS])


def rows(shared: bool) -> dict[str, torch.Tensor]:
    """Four samples, each in its own row or two per row. Their lengths differ, so there is padding."""
    torch.manual_seed(1)
    ids = [torch.randint(6, 90, (length,)).tolist() for length in LENGTHS]
    made = []
    for group in ((0, 1), (2, 3)) if shared else ((0,), (1,), (2,), (3,)):
        starts = [sum(LENGTHS[other] for other in group[:i]) for i in range(len(group))]
        placed = list(zip(starts, group, strict=True))
        made.append(
            {
                "ids": [token for sample in group for token in ids[sample]],
                "lengths": [LENGTHS[sample] for sample in group],
                "places": [start + place for start, sample in placed for place in range(1, LENGTHS[sample] - 1)],
                "anchors": [start + anchor for start, sample in placed for anchor in ANCHORS[sample]],
                "ends": [start + LENGTHS[sample] for start, sample in placed for _ in KS],
                "ks": [*KS] * len(group),
                "sampled": [0] * len(KS) * len(group),
            }
        )
    return collate(made)


def hidden(distillation: Distillation, inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """The proposals, and the hidden states [places, D] of student and teacher at the blocks and at the real tokens that are not
    padding, sample by sample."""
    batch = pack_blocks(
        inputs["tokens"], inputs["lengths"].tolist(), inputs["anchors"], inputs["ks"].tolist(), MASK,
        segments=inputs["segments"],
    )  # fmt: skip
    passes = distillation.passes
    ours = passes.propose(batch)
    proposals = passes.student.best(ours.blocks)
    theirs = passes.read(batch, proposals)
    real = inputs["segments"] >= 0
    return [
        proposals.flatten(), ours.blocks.flatten(0, 1), theirs.blocks.flatten(0, 1), ours.real[real], theirs.real[real]
    ]  # fmt: skip


def loss_and_gradients(distillation: Distillation, inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    loss, statistics = distillation(inputs)
    parameters = [p for p in distillation.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    assert statistics.seen.sum() > 10
    return [loss.detach(), *(g for g in gradients if g is not None)]


def assert_same(ours: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for a, b in zip(ours, expected, strict=True):
        assert torch.allclose(a.double(), b.double(), rtol=1e-5, atol=1e-5)


def objectives(method: str) -> list[Objective]:
    weight = 0.5 if method == "full" else 0.0  # at real tokens a gate changes nothing
    return [Objective(next_token_weight=weight), Objective(labels="data", until_disagreement=True)]


@pytest.mark.parametrize("method", ["full", "gated"])
@pytest.mark.parametrize("family", FAMILIES)
def test_samples_in_a_shared_row_do_not_see_each_other(family: str, method: str) -> None:
    """Guards against samples that see each other, and against positions that continue from one sample to the next. Both would
    train on a context that decoding never has. The difference would be 1."""
    for objective in objectives(method):
        distillation = step(family, method, objective)
        shared, alone = rows(shared=True), rows(shared=False)
        assert_same(hidden(distillation, shared), hidden(distillation, alone))
        assert_same(loss_and_gradients(distillation, shared), loss_and_gradients(distillation, alone))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prefix_in_chunks_is_the_whole_prefix(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a chunk that does not see the ones before it, or has their positions. Chunks of 5 end inside samples,
    inside the sliding window and inside padding. Packed rows are tested as well."""
    distillation = step(family, "gated", Objective())
    for inputs in (rows(shared=False), rows(shared=True)):
        whole = [*hidden(distillation, inputs), *loss_and_gradients(distillation, inputs)]
        with monkeypatch.context() as patch:
            patch.setattr(passes_module, "MOST_TOKENS", 5)
            assert_same([*hidden(distillation, inputs), *loss_and_gradients(distillation, inputs)], whole)
