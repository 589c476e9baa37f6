"""The optimizers: which weights decay, and that both of them train and resume."""

import copy

import pytest
import torch
from torch import nn

from multitoken.training import muon
from multitoken.training.muon import Muon, orthogonal
from multitoken.training.optimizer import build_optimizer, build_schedule, default_rate, rate_at, weight_at
from tests.tiny import tiny_llama, tiny_tokenizer


def test_embeddings_and_norms_never_decay() -> None:
    """Weight decay would pull every row of the embedding, including the mask token's, towards zero at each step."""
    model = tiny_llama(tiny_tokenizer(), tie_word_embeddings=False)
    optimizer = build_optimizer(model, name="adamw", lr=1e-3, weight_decay=0.1)
    decayed = {id(p) for g in optimizer.param_groups if g["weight_decay"] for p in g["params"]}
    for name, parameter in model.named_parameters():
        expected = parameter.ndim == 2 and "embed" not in name and "lm_head" not in name
        assert (id(parameter) in decayed) == expected, name


def test_an_untrained_head_learns_faster_than_the_weights_beside_it() -> None:
    """A new head moves five times as far in one step of AdamW, whose steps are as long as its rate."""
    weights, head = nn.Linear(4, 4), nn.Linear(4, 4)
    both = nn.ModuleDict({"main": weights, "draft_head": head})
    before = copy.deepcopy(both)
    optimizer = build_optimizer(both, name="adamw", lr=1e-3, weight_decay=0.1, fresh=head)
    sum(p.sum() for p in both.parameters()).backward()
    optimizer.step()
    for name, parameter in both.named_parameters():
        old = before.get_parameter(name)
        decay = 1 - 1e-4 if name == "main.weight" else 1.0
        step = 5e-3 if name.startswith("draft_head") else 1e-3
        torch.testing.assert_close(parameter.data, decay * old.data - step, rtol=0, atol=1e-6)


def test_next_tokens_weigh_more_as_the_rate_falls() -> None:
    """The product of weight and rate stays what it is at the highest rate, until the weight is ten times its first
    value."""
    assert [weight_at(done, 0.1) for done in (0.0, 0.05, 0.1)] == [1.0] * 3
    for done in (0.2, 0.5, 0.9):
        assert weight_at(done, 0.1) * rate_at(done, 0.1) == pytest.approx(1.0)
    assert weight_at(0.99, 0.1) == weight_at(1.0, 0.1) == 10.0
    assert rate_at(1.0, 1.0) == 0.0, "a run that only warms up, resumed at its end"


def test_the_default_rate_falls_with_width_where_every_weight_moves() -> None:
    """The rate for a model of width 256 would ruin one of width 4,096. An adapter's rank does not grow with its
    model."""
    assert default_rate("full", "muon", 1024) == default_rate("full", "muon", 256) / 2
    assert default_rate("full", "adamw", 1024) == default_rate("full", "adamw", 256) / 4
    assert default_rate("full", "adamw", 64) == default_rate("full", "adamw", 256)
    assert default_rate("full", "adamw", 1024, 0.5) == 2 * default_rate("full", "adamw", 1024)
    for method in ("gated", "lora"):
        assert default_rate(method, "muon", 4096) == default_rate(method, "muon", 64)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_state_survives_saving_and_loading(name: str) -> None:
    """A resumed run must continue bit for bit as if it had never stopped."""

    def steps(model, optimizer, schedule, n: int) -> None:
        for i in range(n):
            sum((p * (i + 1)).sin().sum() for p in model.parameters()).backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()

    def fresh():
        model = tiny_llama(tiny_tokenizer())
        optimizer = build_optimizer(model, name=name, lr=1e-2, weight_decay=0.1)
        return model, optimizer, build_schedule(optimizer, lambda: 0.5, 0.1)

    whole = fresh()
    steps(*whole, 2)
    saved = [{k: v.clone() for k, v in whole[0].state_dict().items()}, whole[1].state_dict(), whole[2].state_dict()]
    saved[1] = torch.load(_buffer(saved[1]), weights_only=True)
    steps(*whole, 2)
    resumed = fresh()
    resumed[0].load_state_dict(saved[0])
    resumed[1].load_state_dict(saved[1])
    resumed[2].load_state_dict(saved[2])
    steps(*resumed, 2)
    for ours, theirs in zip(resumed[0].parameters(), whole[0].parameters(), strict=True):
        assert torch.equal(ours, theirs)


def _buffer(state):
    import io

    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return buffer


@pytest.mark.parametrize("shape", [(12, 40), (40, 12), (16, 16)])
def test_muon_is_torchs_where_a_cpu_is_slow_in_bfloat16(shape, monkeypatch) -> None:
    """Our Muon must make the steps that torch's makes in float32, and be able to continue from torch's state."""
    steps, gradients = 4, torch.randn(4, *shape)
    weights = [nn.Parameter(torch.ones(shape)) for _ in range(2)]
    theirs = torch.optim.Muon([weights[0]], lr=0.1, weight_decay=0.2, adjust_lr_fn="match_rms_adamw")
    ours = Muon([weights[1]], lr=0.1, weight_decay=0.2)
    monkeypatch.setattr(muon, "cpu_gains_by_bf16", lambda: False)
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.float)
    for i in range(steps):
        for parameter, optimizer in zip(weights, (theirs, ours), strict=True):
            parameter.grad = gradients[i].clone()
            optimizer.step()
        assert torch.allclose(weights[0], weights[1], atol=1e-6)
        ours.load_state_dict(copy.deepcopy(theirs.state_dict()))


def test_orthogonal_has_singular_values_near_one() -> None:
    matrix = torch.randn(20, 50) * 30
    values = torch.linalg.svdvals(orthogonal(matrix, (3.4445, -4.7750, 2.0315), 5, 1e-7))
    assert values.min() > 0.6 and values.max() < 1.3


def test_schedule_climbs_then_falls_to_zero_for_every_group() -> None:
    """Muon's and AdamW's groups must follow the same schedule."""
    model = tiny_llama(tiny_tokenizer())
    optimizer = build_optimizer(model, name="muon", lr=1.0, weight_decay=0.0)
    done = [0.0]
    schedule = build_schedule(optimizer, lambda: done[0], 0.1)
    seen = []
    for progress in (0.05, 0.1, 0.55, 1.0):
        done[0] = progress
        optimizer.step()
        schedule.step()
        rates = {group["lr"] for group in optimizer.param_groups}
        assert len(rates) == 1
        seen.append(rates.pop())
    assert seen == pytest.approx([0.51, 1.0, 0.5, 0.0], abs=1e-6)
    assert {g["lr"] for g in (*optimizer.muon.param_groups, *optimizer.adamw.param_groups)} == {0.0}
