"""Exported checkpoints as users see them: made by the command line, and used with transformers and without multitoken."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import multitoken as mt
from benchmarks.rivals import rival
from multitoken.quickstart.embedded import checkpoint
from tests.e2e.command import run

SCRIPT = Path(__file__).with_name("without_multitoken.py")
GOOD, BAD = "a" * 40, "b" * 40
QUESTION = "Ada has 48 shells. She finds 37 shells in the attic. How many shells does Ada have now?"


def place(name: str) -> Path:
    return rival(name) if name == "full" else checkpoint(name)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The embedded checkpoints, exported by the command."""
    folder = tmp_path_factory.mktemp("exported")
    for name in ("gated", "full"):
        assert run("export", place(name), folder / name, "--threshold", 0.7) == 0
    return folder


def put_into_hub_cache(cache: Path, name: str, commit: str, source: Path, without: str = "") -> None:
    """Make `source` a commit of a repository, as if it had been downloaded. The last commit made is its main branch."""
    repository = cache / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True, exist_ok=True)
    (repository / "refs" / "main").write_text(commit)
    for file in source.rglob("*"):
        target = repository / "snapshots" / commit / file.relative_to(source)
        if file.is_file() and not (without and without in file.parts):
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(file)


def facts_without_multitoken(folder: Path, original: Path, work: Path, hub_name: str = "") -> dict:
    places = {"HF_MODULES_CACHE": work / "modules", "HF_HUB_CACHE": work / "hub", "GOOD_REVISION": GOOD}
    done = subprocess.run(
        [sys.executable, SCRIPT, folder, original, hub_name],
        capture_output=True,
        text=True,
        env={**os.environ, **{key: str(place) for key, place in places.items()}, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(("name", "original"), [("gated", "base"), ("full", "full")])
def test_transformers_alone(name, original, exported, tmp_path) -> None:
    """Guards against an export that needs multitoken, that decodes differently from it, that changes the ordinary model, or
    whose adapter comes from another commit than its code (a pinned `revision`, and a main branch that has moved on)."""
    hub_name = "someone/exported-1.5" if name == "gated" else ""
    if hub_name:
        put_into_hub_cache(tmp_path / "hub", hub_name, GOOD, exported / name)
        put_into_hub_cache(tmp_path / "hub", hub_name, BAD, exported / name, without="mtp_adapter")
    facts = facts_without_multitoken(exported / name, place(original), tmp_path, hub_name)
    assert facts["imported"] == []
    for way in ("ordinary", "by_load", "by_call"):
        assert facts[way] == facts["wanted"], way
    assert facts["ordinary_is_ordinary"]
    chunks = facts["by_load_chunks"]
    assert chunks == facts["by_call_chunks"] and sum(map(len, chunks)) > 3 * len(chunks), "several tokens a step"
    assert facts["batch"] == facts["batch_wanted"] and facts["batch"][1][0] == 0, "padded on the left"
    for way in ("sampled", "sampled_by_torch"):
        assert facts[way][0] == facts[way][1] != facts["wanted"][0], way
    assert facts["stopped"][0] == facts["stopped"][1] and len(facts["stopped"][0][0]) < len(facts["wanted"][0][0])
    assert facts["pipeline_is_ours"] and facts["piped"] == facts["streamed"] == facts["text"] != ""
    if hub_name:
        assert facts["from_hub"] == facts["wanted"]


@pytest.mark.parametrize("name", ["gated", "full"])
def test_multitoken_loads_it(name, exported) -> None:
    """Guards against a gate that is not attached, a gate that is attached twice, and defaults of the export that are ignored."""
    before, after = mt.load(place(name)), mt.load(exported / name)
    assert after.default_policy == mt.Exact(0.7)
    wanted = before.generate(QUESTION, policy=mt.Exact(0.7), adaptive=False, max_new_tokens=60)
    found = after.generate(QUESTION, adaptive=False, max_new_tokens=60)
    assert [chunk.token_ids for chunk in found.chunks] == [chunk.token_ids for chunk in wanted.chunks]
    chunks: list = []
    given = {"custom_generate": str(exported / name), "trust_remote_code": True, "mtp_chunks": chunks}
    after.hf.generate(torch.tensor([after.encode(QUESTION)]), mtp={"adaptive": False}, max_new_tokens=60, **given)
    assert [chunk.token_ids for chunk in chunks] == [chunk.token_ids for chunk in wanted.chunks]


def test_from_the_hub(exported, tmp_path, monkeypatch) -> None:
    """Guards against a reference that only its author's machine can resolve, and against a gate that is not fetched from the
    hub."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    put_into_hub_cache(tmp_path / "hub", "someone/base", GOOD, checkpoint("base"))
    assert run("export", checkpoint("gated"), tmp_path / "out", "--reference", "--base", "someone/base") == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        ".complete",
        "README.md",
        "adapt.json",
        "adapter_config.json",
        "adapter_model.safetensors",
        "chat_template.jinja",
        "generation_config.json",
        "mtp_head",
        "provenance.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    settings = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == settings["mtp"]["base_name"] == "someone/base"
    assert "base_model: someone/base\nbase_model_relation: adapter" in (tmp_path / "out" / "README.md").read_text()
    put_into_hub_cache(tmp_path / "hub", "someone/adapter", GOOD, tmp_path / "out")
    put_into_hub_cache(tmp_path / "hub", "someone/both", GOOD, exported / "gated")
    for name in ("someone/adapter", "someone/both"):
        model = mt.load(name)
        answer = model.generate(QUESTION, adaptive=False)
        assert model.name == name and answer.text.endswith("Answer: 85") and answer.tokens_per_step > 3
