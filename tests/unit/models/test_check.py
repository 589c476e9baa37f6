"""`multitoken check`: what passes, what fails with a reason, and checks of a config alone, without its weights."""

import json

import pytest
import torch
from transformers import BambaConfig, DeepseekV3Config, Gemma4TextConfig, JambaConfig, Qwen3NextConfig

from benchmarks.architectures import BEGIN, END, page
from benchmarks.tiny_families import MASK, tiny_config, tiny_model
from multitoken.errors import UsageError
from multitoken.models import random_weights
from multitoken.models.check import check_model, uses
from multitoken.models.random_weights import cut, random_model
from tests.e2e.command import run

pytestmark = pytest.mark.slow
EVERYTHING = ["trained", "decoded", "exact", "batched", "sampled", "gated", "exported"]


def test_a_family_that_works_passes_everything() -> None:
    """Refusing a family that works would send users away for nothing."""
    findings = check_model(tiny_model("lfm2"), MASK)
    assert dict(uses(findings)) == dict.fromkeys(EVERYTHING, True)
    assert all(found.difference is not None and found.difference < 1e-3 for found in findings)


def test_what_would_decode_wrongly_fails_with_its_reason() -> None:
    findings = check_model(tiny_model("rwkv"), MASK)
    assert not any(dict(uses(findings)).values())
    assert "RwkvSelfAttention" in findings[0].note and "one file in decoding/" in findings[0].note


def test_a_model_that_is_wrong_in_batches_only_is_found_out(monkeypatch) -> None:
    """Positions are off by one where rows are padded. Single rows are right, and so is training."""
    model = tiny_model("llama")
    forward = model.forward

    def wrong(*args, position_ids=None, **named):
        if position_ids is not None and len(position_ids) > 2:
            position_ids = (position_ids - 1).clamp_min(0)
        return forward(*args, position_ids=position_ids, **named)

    monkeypatch.setattr(model, "forward", wrong)
    can = dict(uses(check_model(model, MASK)))
    assert can["trained"] and can["decoded"] and not can["batched"] and not can["exact"] and not can["exported"]


def test_the_command_asks_a_config_alone_and_exits_1_where_it_would_be_wrong(tmp_path, capsys) -> None:
    tiny_config("mamba2").save_pretrained(tmp_path / "right")
    tiny_config("rwkv").save_pretrained(tmp_path / "wrong")
    assert run("check", tmp_path / "right", "--random-weights", "--json") == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["uses"] == dict.fromkeys(EVERYTHING, True) and len(told["tests"]) == 10
    assert run("check", tmp_path / "wrong", "--random-weights") == 1
    said = capsys.readouterr().out
    assert "FAIL packed blocks" in said and "decoded: NO" in said


def test_options_that_random_weights_cannot_follow_are_refused(tmp_path, capsys) -> None:
    """The test of a config is one in float32 on the CPU. It must not pass for a test of bfloat16."""
    tiny_config("mamba2").save_pretrained(tmp_path)
    assert run("check", tmp_path, "--random-weights", "--dtype", "bfloat16", "--base", "b") == 2
    assert "--base, --dtype: not possible with --random-weights" in capsys.readouterr().err


def test_the_command_refuses_what_is_no_model(tmp_path, capsys) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert run("check", tmp_path, "--random-weights") == 1
    assert "cannot read config.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("config", "layers"),
    [
        (Qwen3NextConfig(), 4),  # every fourth layer is full attention
        (JambaConfig(), 9),  # every eighth
        (DeepseekV3Config(), 4),  # the first three are dense
        (BambaConfig(attn_layer_indices=[3]), 4),
    ],
)
def test_few_layers_show_every_kind(config, layers: int) -> None:
    small = cut(config)
    assert small.num_hidden_layers == layers and small.vocab_size == 1024
    assert set(getattr(small, "layer_types", [])) == set(getattr(config, "layer_types", []))
    assert small.hidden_size == config.hidden_size, "widths stay"


def test_layers_of_unlike_sizes_are_cut_too() -> None:
    small = cut(Gemma4TextConfig())
    assert small.num_hidden_layers == len(small.layer_types) and set(small.layer_types) == set(
        Gemma4TextConfig().layer_types
    )


def test_a_model_too_large_for_the_machine_is_said_before(monkeypatch) -> None:
    monkeypatch.setattr(random_weights, "available_memory", lambda _: 10_000)
    with pytest.raises(UsageError, match=r"layers of llama take 0\.0 GB"):
        random_model(tiny_config("llama"))


def test_random_weights_are_wide_enough_to_show_what_is_wrong() -> None:
    model = random_model(tiny_config("qwen3"))
    with torch.no_grad():
        assert model(input_ids=torch.arange(8)[None]).logits.std() > 0.5


def test_a_page_keeps_the_words_around_its_table() -> None:
    text = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    made = page(text, ["| llama | attention | all | 0 |"], {"rwkv": "why"}, "command")
    assert made.startswith("before\n") and made.endswith("after\n") and "old" not in made
    assert "- **rwkv**: why" in made and "1 families, 1 right in everything" in made
    assert page(made, ["| x | y | all | 0 |"], {}, "command").count(BEGIN) == 1
