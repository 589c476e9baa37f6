"""Training the base further: the stages of a curriculum, conversations, and a run that ends with a model and can be
resumed."""

import json
import random

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from multitoken.errors import OutputError
from multitoken.quickstart import continue_base as module
from multitoken.quickstart.base_text import END
from multitoken.quickstart.continue_base import (
    CURRICULA,
    batches,
    continue_base,
    join_turns,
)
from multitoken.quickstart.corpus import make_example
from multitoken.quickstart.embedded import checkpoint


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(checkpoint("base"))


def test_stages_follow_each_other_to_the_end() -> None:
    for plan in CURRICULA.values():
        stages = plan.stages
        assert [s.until for s in stages] == sorted(s.until for s in stages) and stages[-1].until == 1
        assert plan.at(0) is stages[0] and plan.at(stages[0].until) is stages[1]
        assert plan.at(1.2) is stages[-1]
        assert all(abs(sum(s.mixture.values()) - 1) < 1e-9 for s in stages)
        assert plan.learning_rate_factor(10_000, plan.flat - 0.01) == 1
        assert plan.learning_rate_factor(10_000, 1.0) == pytest.approx(0.01)


def test_joined_turns_lose_nothing() -> None:
    """A conversation is a series of whole examples, and the weights stay with their tokens."""
    rows = [([i] * n, [float(i)] * n) for i, n in enumerate(random.Random(0).choices(range(5, 200), k=300))]
    joined = join_turns(rows, 0.5, random.Random(1))
    assert len(joined) < 300
    assert sorted(x for ids, _ in joined for x in ids) == sorted(x for ids, _ in rows for x in ids)
    assert all(ids == [int(w) for w in weights] for ids, weights in joined)
    assert max(len(ids) for ids, _ in joined) > 400
    assert join_turns(rows, 0.0, random.Random(1)) == rows


def test_batches_hold_the_stage_s_examples_and_its_end_weight(tokenizer, monkeypatch) -> None:
    monkeypatch.setattr(module, "POOL", 40)
    monkeypatch.setattr(module, "CONVERSATIONS", 0.0)
    stage = module.Stage(1.0, {"short-counting": 1.0}, end_weight=7.0)
    end = tokenizer.vocab[END]
    seen = []
    for ids, weights in batches(tokenizer, stage, 256, 80, "test"):
        assert ids.shape == weights.shape and (ids.numel() <= 256 or len(ids) == 1)
        for row, weight in zip(ids, weights, strict=True):
            row = row[weight > 0]
            assert row[-1] == end and weight[weight > 0][-1] == 7
            text = tokenizer.decode(row)
            seen.append(text.split("<|assistant|>")[1].removesuffix(END))
    assert sorted(seen) == sorted(make_example("short-counting", "train", i).response for i in range(80, 120))


@pytest.mark.slow
def test_a_run_ends_in_a_model_and_goes_on_where_it_was(tmp_path, monkeypatch) -> None:
    """A killed run loses the minutes since its last validation, not the whole hour."""
    monkeypatch.setattr(module, "JUDGED", ("counting",))
    monkeypatch.setattr(module, "POOL", 16)

    def go(minutes: float) -> None:
        continue_base(
            checkpoint("base"),
            tmp_path / "out",
            curriculum="toys",
            minutes=minutes,
            lr=1e-4,
            judge_every=1e-6,
            judged=2,
        )

    looks = iter(range(10))

    def dying(*_) -> float:
        if next(looks) == 2:
            raise KeyboardInterrupt
        return 0.5

    monkeypatch.setattr(module, "share_right", dying)
    with pytest.raises(KeyboardInterrupt):
        go(5.0)
    state = torch.load(tmp_path / "out" / "state.pt", weights_only=True)
    step, _, _, seconds = state["progress"]
    assert step > 2
    go(seconds / 60 + 0.005)
    facts = json.loads((tmp_path / "out" / "training.json").read_text())
    records = [json.loads(line) for line in (tmp_path / "out" / "train_log.jsonl").read_text().splitlines()]
    assert facts["steps"] > step and records[-1] == {"step": facts["steps"], "right": {"counting": 0.5}}
    model = LlamaForCausalLM.from_pretrained(tmp_path / "out")
    assert model.dtype == torch.bfloat16
    with pytest.raises(OutputError, match="finished model"):
        go(1.0)
