"""Adapters with random tokens (noise) in place of a mask vector: trained, saved, loaded, and converted to and from
UNO's format."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from multitoken.checkpoints.export import export
from multitoken.checkpoints.uno import adopt_uno, export_uno
from multitoken.decoding.gate_file import MASK_VECTOR, WEIGHTS
from multitoken.decoding.noise import noise_ids
from multitoken.decoding.policies import Exact, NextToken
from multitoken.errors import ModelError, UsageError
from multitoken.models.model import Model
from multitoken.quickstart.embedded import checkpoint, embedded_task
from multitoken.training.adapt import adapt

PROMPTS = [q.prompt for q in embedded_task("repeating", 16).questions]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("noise")
    data = place / "prompts.jsonl"
    data.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS))
    adapt(
        model=checkpoint("base"), data=data, output=place / "adapter", masks="noise", steps=120, k_max=8, head_rank=0, rank=16,
        responses="greedy", device="cpu", validation_share=0.0, learning_rate=5e-3, verbose=False,
    )  # fmt: skip
    return place / "adapter"


def test_noise_is_even_and_by_position() -> None:
    """Guards against neighbouring positions with similar noise, and against ids that a small vocabulary does not
    have."""
    ids = noise_ids(torch.arange(100_000), 50)
    counts = torch.bincount(ids, minlength=50)
    assert counts.min() > 1800 and counts.max() < 2200
    assert (ids[1:] == ids[:-1]).float().mean() < 0.03
    assert torch.equal(noise_ids(torch.arange(5, 8), 50), ids[5:8])
    assert not torch.equal(noise_ids(torch.arange(100), 50, seed=1), ids[:100])


def test_a_trained_one_drafts_and_changes_nothing(folder: Path) -> None:
    """Guards against masks that are embedded as token 0, with which training would still seem to work, and against an
    adapter that behaves differently after loading than it did in training."""
    assert MASK_VECTOR not in load_file(folder / WEIGHTS)
    model, plain = Model.load(folder, device="cpu"), Model.load(checkpoint("base"), device="cpu")
    ours = model.generate(PROMPTS, policy=Exact(0.3), max_new_tokens=40, adaptive=False)
    theirs = plain.generate(PROMPTS, policy=NextToken(), max_new_tokens=40)
    assert [a.token_ids for a in ours] == [a.token_ids for a in theirs]
    assert sum(len(a.token_ids) for a in ours) / sum(a.forward_passes for a in ours) > 1.5


def test_an_exported_checkpoint_drafts_alike(folder: Path, tmp_path: Path) -> None:
    whole = Model.load(export(folder, tmp_path / "whole"), device="cpu")
    answers = [
        m.generate(PROMPTS[0], policy=Exact(0.3), max_new_tokens=40, adaptive=False)
        for m in (Model.load(folder), whole)
    ]
    assert [c.token_ids for c in answers[0].chunks] == [c.token_ids for c in answers[1].chunks]


def test_there_and_back_through_uno_s_format(folder: Path, tmp_path: Path) -> None:
    """Guards against names, scales and layers that SGLang's loader would not find. The file must follow PEFT's format,
    with nothing else in it."""
    command = export_uno(folder, tmp_path / "uno")
    assert "--speculative-algorithm UNO" in command and "--speculative-num-draft-tokens 8" in command
    settings = json.loads((tmp_path / "uno" / "adapter_config.json").read_text())
    assert settings["peft_type"] == "LORA" and settings["lora_alpha"] == settings["r"] == 16 and "mtp" not in settings
    state = load_file(tmp_path / "uno" / WEIGHTS)
    assert all(".layers." in name and name.endswith((".lora_A.weight", ".lora_B.weight")) for name in state)
    with pytest.raises(ModelError, match="needs uno=True, or `multitoken adopt` first"):
        Model.load(tmp_path / "uno", base=checkpoint("base"))
    again = Model.load(tmp_path / "uno", base=checkpoint("base"), uno=True, device="cpu")
    adopted = Model.load(adopt_uno(tmp_path / "uno", tmp_path / "ours", base=str(checkpoint("base"))), device="cpu")
    first = Model.load(folder, device="cpu").generate(
        PROMPTS[1], policy=Exact(0.3, k=8), max_new_tokens=40, adaptive=False
    )
    for model in (again, adopted):
        answer = model.generate(PROMPTS[1], policy=Exact(0.3, k=8), max_new_tokens=40, adaptive=False)
        assert [c.token_ids for c in answer.chunks] == [c.token_ids for c in first.chunks]


def test_another_trainer_s_adapter_has_its_own_names_and_scale(folder: Path, tmp_path: Path) -> None:
    """PEFT writes only the ends of layer names, and a scale of alpha / r. Rank-stabilised adapters divide by the square
    root of r."""
    export_uno(folder, tmp_path / "uno")
    settings_file = tmp_path / "uno" / "adapter_config.json"
    settings = json.loads(settings_file.read_text())
    state = load_file(tmp_path / "uno" / WEIGHTS)
    halved = {name: t / 2 if name.endswith("lora_B.weight") else t for name, t in state.items()}
    save_file(halved, tmp_path / "uno" / WEIGHTS)
    ends = sorted({name.rsplit(".", 1)[-1] for name in settings["target_modules"]})
    first = Model.load(folder, device="cpu").generate(
        PROMPTS[1], policy=Exact(0.3, k=8), max_new_tokens=40, adaptive=False
    )
    for change in ({"lora_alpha": 32}, {"lora_alpha": 8, "use_rslora": True}):
        settings_file.write_text(json.dumps(settings | {"target_modules": ends} | change))
        again = Model.load(tmp_path / "uno", base=checkpoint("base"), uno=True, device="cpu")
        answer = again.generate(PROMPTS[1], policy=Exact(0.3, k=8), max_new_tokens=40, adaptive=False)
        assert [c.token_ids for c in answer.chunks] == [c.token_ids for c in first.chunks]


@pytest.mark.parametrize(("change", "said"), [({"use_dora": True}, "use_dora is True"), ({"peft_type": "IA3"}, "IA3")])
def test_what_is_no_plain_adapter_is_refused(folder: Path, tmp_path: Path, change: dict[str, Any], said: str) -> None:
    export_uno(folder, tmp_path / "uno")
    settings_file = tmp_path / "uno" / "adapter_config.json"
    settings_file.write_text(json.dumps(json.loads(settings_file.read_text()) | change))
    with pytest.raises(ModelError, match=said):
        Model.load(tmp_path / "uno", base=checkpoint("base"), uno=True, device="cpu")


def test_what_uno_cannot_serve_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="was trained with a mask vector"):
        export_uno(checkpoint("gated"), tmp_path / "uno")
    with pytest.raises(ModelError, match=f"{folder} is a multitoken adapter already"):
        Model.load(folder, uno=True, device="cpu")
    with pytest.raises(UsageError, match=r"base has no adapter_config\.json; expected an UNO draft adapter"):
        Model.load(checkpoint("base"), uno=True, device="cpu")
    with pytest.raises(UsageError, match="no/such/folder is no folder, and no adapter"):
        Model.load("no/such/folder", uno=True, device="cpu")
