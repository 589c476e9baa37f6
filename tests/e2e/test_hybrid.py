"""Hybrid models from end to end: adapted by the command, loaded, decoded and exported, with one family for each method."""

import json

import pytest

import multitoken as mt
from benchmarks.tiny_families import tiny_model
from tests.e2e.command import run
from tests.tiny import tiny_tokenizer

PROMPTS = ["w7 w8 w9", "w20 w21", " ".join(f"w{i}" for i in range(5, 22))]


@pytest.mark.parametrize(
    ("family", "method"), [("qwen3_next", "gated"), ("granitemoehybrid", "full"), ("jamba", "lora")]
)
def test_adapted_loaded_and_exported(family: str, method: str, tmp_path) -> None:
    """`Exact` must equal next-token decoding of the saved model, and its export must decode the same."""
    tiny_model(family).save_pretrained(tmp_path / "base")
    tiny_tokenizer(90).save_pretrained(tmp_path / "base")
    rows = [
        {"prompt": f"w{4 + i} w{5 + i}", "response": " ".join(f"w{4 + (i + j) % 40}" for j in range(30))}
        for i in range(20)
    ]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    adapt = ["adapt", tmp_path / "base", "--data", tmp_path / "data.jsonl", "--output", tmp_path / "adapted", "--steps", 3,
             "--method", method, "--k-max", 4, "--batch-size", 2, "--blocks-per-row", 3]  # fmt: skip
    assert run(*adapt) == 0
    assert run("export", tmp_path / "adapted", tmp_path / "hub") == 0
    model, exported = mt.load(tmp_path / "adapted"), mt.load(tmp_path / "hub")
    plain = [a.token_ids for a in model.generate(PROMPTS, policy=mt.NextToken(), max_new_tokens=20)]
    for loaded in (model, exported):
        assert [a.token_ids for a in loaded.generate(PROMPTS, policy=mt.Exact(0.0), max_new_tokens=20)] == plain


def test_gradient_checkpointing_is_refused(tmp_path, capsys) -> None:
    """With gradient checkpointing, layers are given no cache when they run again. They would treat a packed row as one text."""
    tiny_model("mamba2").save_pretrained(tmp_path / "base")
    tiny_tokenizer(90).save_pretrained(tmp_path / "base")
    (tmp_path / "data.jsonl").write_text('{"prompt": "w4 w5", "response": "w6 w7 w8 w9"}\n' * 4)
    assert run("adapt", tmp_path / "base", "--data", tmp_path / "data.jsonl", "--output", tmp_path / "adapted", "--steps", 1,
               "--method", "full", "--k-max", 3, "--gradient-checkpointing") != 0  # fmt: skip
    assert "--gradient-checkpointing is not supported for Mamba2ForCausalLM" in " ".join(
        capsys.readouterr().err.split()
    )
