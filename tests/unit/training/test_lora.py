"""LoRA: the teacher is exactly the original, and the saved weights are those that were trained."""

import copy

import pytest
import torch

import multitoken as mt
from multitoken.decoding.attention import AttentionRule
from multitoken.decoding.blocks import pack_blocks
from multitoken.decoding.gate import adaptable_layers
from multitoken.models.loading import load_causal_lm
from multitoken.training.head import Head
from multitoken.training.lora import only_trained, with_lora
from multitoken.training.passes import PackedPasses
from tests.parity.families import MASK, SUPPORTED
from tests.unit.training.project import make_project, run

FAMILIES = ["llama", "gpt2", "qwen3 mixture of experts"]


@pytest.fixture
def project(tmp_path):
    return make_project(tmp_path)


@pytest.mark.parametrize("family", FAMILIES)
def test_teacher_is_the_original_and_merging_keeps_the_student(family: str) -> None:
    """With fused experts and transposed matrices, adapters are easily skipped or merged wrongly."""
    model = SUPPORTED[family]().requires_grad_(False)
    bare = copy.deepcopy(model)
    rule = AttentionRule(model)
    adapted = with_lora(model, adaptable_layers(model), rank=4, seed=0)
    trained = only_trained(model)
    assert all("lora" in name for name in trained)
    generator = torch.Generator().manual_seed(1)
    for parameter in trained.values():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    batch = pack_blocks(torch.arange(8, 20)[None], [12], torch.tensor([[3, 7]]), (3, 4), MASK)
    passes = PackedPasses(Head(model, MASK), Head(model, MASK, under=adapted.disable_adapter), rule)
    with torch.no_grad():
        ours, theirs = passes.propose(batch), passes.read(batch, torch.full((1, 7), 9))
        plain = PackedPasses(Head(bare, MASK), Head(bare, MASK), rule).read(batch, torch.full((1, 7), 9))
        assert torch.equal(theirs.blocks, plain.blocks)
        merged = adapted.merge_and_unload()
        again = PackedPasses(Head(merged, MASK), Head(bare, MASK), rule).propose(batch)
    assert torch.allclose(again.blocks, ours.blocks, atol=1e-4)
    assert not torch.allclose(ours.blocks, theirs.blocks, atol=1e-2)


def test_an_adapted_checkpoint_is_an_ordinary_one(project) -> None:
    """The checkpoint has merged weights and the mask token's row in the matrix, and no trace of PEFT."""
    before = load_causal_lm(project / "base").weight_hash
    run(project, "adapted", method="lora", rank=4, steps=10)
    names = {path.name for path in (project / "adapted").iterdir()}
    assert "model.safetensors" in names and not any(name.startswith("adapter") for name in names)
    model, base = mt.load(project / "adapted"), mt.load(project / "base")
    assert model.mtp is not None and (model.mtp.method, model.mtp.base_hash) == ("lora", before)
    ours, theirs = dict(model.hf.named_parameters()), dict(base.hf.named_parameters())
    assert ours.keys() == theirs.keys()
    changed = {name for name in ours if not torch.equal(ours[name], theirs[name])}
    assert any("q_proj" in name for name in changed)
    assert not any("norm" in name for name in changed)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        rows = (ours[name] != theirs[name]).any(1).nonzero()[:, 0] if name in ours else []
        assert {int(row) for row in rows} <= {model.mtp.mask_token_id}, name
    assert "model.embed_tokens.weight" in changed
    exact = model.generate("w7 w8", policy=mt.Exact(0.0), max_new_tokens=12)
    assert exact.token_ids == model.generate("w7 w8", policy=mt.NextToken(), max_new_tokens=12).token_ids
