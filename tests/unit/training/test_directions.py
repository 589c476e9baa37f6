"""Weights change along the directions that real tokens use least: S, and what it does to an optimizer's steps."""

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim import AdamW

from multitoken.decoding.gate import adaptable_layers
from multitoken.training import directions
from multitoken.training.directions import Steering, Weighting, weightings
from multitoken.training.encoding import Sample
from multitoken.training.head import Head
from multitoken.training.optimizer import MuonAdamW
from tests.parity.families import MASK, SUPPORTED
from tests.unit.training.project import make_project, run


def uneven(number: int, width: int, seed: int = 0) -> Tensor:
    """Inputs [number, width], some of whose directions are much stronger than others."""
    generator = torch.Generator().manual_seed(seed)
    turned, _ = torch.linalg.qr(torch.randn(width, width, generator=generator))
    return torch.randn(number, width, generator=generator) * torch.logspace(-1, 1, width) @ turned


def reference(inputs: Tensor, q: float) -> Tensor:
    """S by the formula, in float64."""
    c = inputs.double().t() @ inputs.double() / len(inputs)
    strengths, vectors = torch.linalg.eigh(torch.linalg.inv(c + q * torch.eye(len(c))) * 2 * q)
    return vectors @ strengths.sqrt().diag() @ vectors.t()


@pytest.mark.parametrize("free", [0.1, 0.5, 0.99])
def test_s_is_the_formula(free: float) -> None:
    inputs = uneven(500, 12)
    c = inputs.double().t() @ inputs.double() / len(inputs)
    q = float(torch.linalg.eigvalsh(c)[int(free * 11)])
    update = torch.randn(3, 12, generator=torch.Generator().manual_seed(1))
    ours = Weighting(inputs, free)(update)
    torch.testing.assert_close(ours, (update.double() @ reference(inputs, q)).float(), rtol=1e-3, atol=1e-3)


def test_fewer_free_directions_move_real_tokens_less() -> None:
    inputs, update = uneven(500, 12), torch.randn(20, 12, generator=torch.Generator().manual_seed(1))
    moved = [float((inputs @ Weighting(inputs, free)(update).t()).norm()) for free in (0.1, 0.5, 0.9)]
    assert moved[0] < moved[1] < moved[2] < float((inputs @ update.t()).norm()) * 2**0.5


def test_in_a_wide_layer_the_strongest_directions_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other directions have the same weight, which follows from the mean of what is left."""
    monkeypatch.setattr(directions, "_MOST", 8)
    generator = torch.Generator().manual_seed(0)
    turned, _ = torch.linalg.qr(torch.randn(32, 32, generator=generator))
    scale = torch.tensor([8.0, 7, 6, 5, 4, 3, *[0.1] * 26])
    inputs = torch.randn(4000, 32, generator=generator) * scale @ turned
    update = torch.randn(5, 32, generator=generator)
    ours = Weighting(inputs, 0.25)(update)
    expected = update.double() @ reference(torch.eye(32) * scale * 32**0.5 @ turned, 0.01)
    torch.testing.assert_close(ours, expected.float(), rtol=0.05, atol=0.05)


def test_unused_inputs_do_not_stop_a_layer() -> None:
    """Half of the inputs are never on, as behind a ReLU. If q were their strength, the layer would stand still."""
    inputs = uneven(500, 12)
    inputs[:, :6] = 0
    moved = Weighting(inputs, 0.25)(torch.ones(1, 12))
    assert moved.isfinite().all() and float(moved[:, :6].abs().min()) > 1
    assert float(moved.norm()) > 1


def steps(weight: nn.Parameter, optimizer: torch.optim.Optimizer, gradient_at) -> None:
    for i in range(5):
        weight.grad = None
        gradient_at(i).backward()
        optimizer.step()


def adamw(weight: nn.Parameter) -> torch.optim.Optimizer:
    return AdamW([weight], lr=0.01, weight_decay=0.0)


def muon(weight: nn.Parameter) -> torch.optim.Optimizer:
    return MuonAdamW([weight], [nn.Parameter(torch.zeros(1))], lr=0.01, weight_decay=0.0)


@pytest.mark.parametrize("optimizer_of", [adamw, muon])
@pytest.mark.parametrize("is_transposed", [False, True])
def test_steered_steps_are_those_of_b(optimizer_of, is_transposed: bool) -> None:
    """W = W_0 + B S with B trained by the same optimizer gives the same weights. GPT-2's Conv1D holds W transposed."""
    generator = torch.Generator().manual_seed(2)
    start = torch.randn(4, 12, generator=generator)
    targets = torch.randn(5, 4, 12, generator=generator)
    weighting = Weighting(uneven(500, 12), 0.25)
    weight = nn.Parameter(start.t().contiguous() if is_transposed else start.clone())
    optimizer, steering = optimizer_of(weight), Steering()
    steering.add(weight, weighting, transposed=is_transposed)
    steering.attach(optimizer)
    steps(weight, optimizer, lambda i: ((weight.t() if is_transposed else weight) - targets[i]).square().sum())
    b = nn.Parameter(torch.zeros(12, 4) if is_transposed else torch.zeros(4, 12))
    s = weighting(torch.eye(12))
    steps(b, optimizer_of(b), lambda i: (start + (b.t() if is_transposed else b) @ s - targets[i]).square().sum())
    expected = start + (b.t() if is_transposed else b).detach() @ s
    torch.testing.assert_close((weight.t() if is_transposed else weight).detach(), expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(expected, start, atol=1e-2)


def test_of_the_embedding_one_row_trains() -> None:
    embedding = nn.Parameter(torch.randn(6, 3, generator=torch.Generator().manual_seed(0)))
    before = embedding.detach().clone()
    optimizer, steering = adamw(embedding), Steering()
    steering.only_row(embedding, 4)
    steering.attach(optimizer)
    steps(embedding, optimizer, lambda _: embedding.square().sum())
    changed = (embedding.detach() != before).any(1)
    assert changed.tolist() == [False, False, False, False, True, False]


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3 mixture of experts"])
def test_inputs_are_those_of_the_layers(family: str) -> None:
    """S of each layer comes from what this layer reads at real tokens; layers that read the same tensor share it."""
    model = SUPPORTED[family]().eval().requires_grad_(False)
    layers = [name for name in adaptable_layers(model) if not name.endswith("experts")]
    samples = [Sample(tuple(range(8 + i, 20 + i)), ((4, 12),), True) for i in range(6)]
    read: dict[str, list[Tensor]] = {name: [] for name in layers}
    hooks = [
        model.get_submodule(name).register_forward_hook(
            lambda _, args, __, name=name: read[name].append(args[0].flatten(0, -2))
        )
        for name in layers
    ]
    with torch.no_grad():
        for sample in samples:
            model(input_ids=torch.tensor([sample.ids]), use_cache=False)
    for hook in hooks:
        hook.remove()
    found = weightings(Head(model, MASK), layers, samples, 0.25)
    assert found.keys() == set(layers)
    for name in layers:
        update = torch.randn(2, read[name][0].shape[1], generator=torch.Generator().manual_seed(3))
        expected = Weighting(torch.cat(read[name]), 0.25)(update)
        torch.testing.assert_close(found[name](update), expected, rtol=1e-3, atol=1e-4)
    if family == "llama":
        first = {name.rsplit(".", 1)[-1]: found[name] for name in layers if ".0." in name}
        assert first["q_proj"] is first["k_proj"] is first["v_proj"] is not first["o_proj"]
        assert first["gate_proj"] is first["up_proj"] is not first["down_proj"]


def changed_rows(project, name: str) -> dict[str, Tensor]:
    """By parameter that differs from the base's: which of its rows do."""
    ours, base = (load_file(project / folder / "model.safetensors") for folder in (name, "base"))
    return {
        key: (ours[key] != base[key]).reshape(len(base[key]), -1).any(1)
        for key in base
        if not torch.equal(ours[key], base[key])
    }


def test_a_full_adaptation_leaves_norms_and_the_vocabulary(tmp_path) -> None:
    project = make_project(tmp_path)
    run(project, "adapted", free_directions=0.25)
    changed = changed_rows(project, "adapted")
    vocabulary = {changed.pop(name, None) for name in ("model.embed_tokens.weight", "lm_head.weight")} - {None}
    assert vocabulary and all(rows.nonzero().tolist() == [[60]] for rows in vocabulary), "the mask token's row alone"
    layers = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    assert {name.rsplit(".", 2)[-2] for name in changed} == set(layers)
    run(project, "as-published", free_directions=1)
    changed = changed_rows(project, "as-published")
    assert any("norm" in name for name in changed) and int(changed["lm_head.weight"].sum()) > 1


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_original_is_kept_better(tmp_path, method: str) -> None:
    """The same steps, without any weight on the original's next tokens: fewer of them are lost."""
    project = make_project(tmp_path)
    options = {"method": method, "steps": 30, "validation_share": 0.3, "next_token_weight": 0.0, "learning_rate": 3e-3}
    kept = {}
    for free in (0.05, 1.0):
        done = run(project, f"free-{free}", free_directions=free, **options)
        assert done.validation is not None
        kept[free] = done.validation.drift
    assert kept[0.05] < kept[1.0]
