"""The checkpoints of this repository as they are shipped: the embedded ones, and those for comparisons."""

import json

import pytest
import torch

import multitoken as mt
from benchmarks.rivals import rival
from multitoken.quickstart.corpus import examples
from multitoken.quickstart.embedded import checkpoint, embedded_task

MOST_BYTES = 12_000_000


@pytest.fixture(scope="module")
def base():
    return mt.load(checkpoint("base"))


@pytest.fixture(scope="module")
def full():
    return mt.load(rival("full"))


@pytest.fixture(scope="module")
def gated():
    return mt.load(checkpoint("gated"))


@pytest.mark.parametrize("name", ["base", "full"])
def test_weights_are_small_and_rounded(name: str) -> None:
    """Checkpoints in the wheel must be small. The base is rounded before anything is adapted from it, so both start from the
    same weights."""
    folder = rival(name) if name == "full" else checkpoint(name)
    assert (folder / "model.safetensors").stat().st_size <= MOST_BYTES
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"


def test_base_is_the_promised_model_and_solves_problems(base) -> None:
    """A stale or damaged checkpoint would still load. (A benchmark measures its accuracy on 1,500 problems.)"""
    assert 4e6 <= base.hf.num_parameters() <= 6e6
    assert base.hf.config.max_position_embeddings == 2048 and base.hf.dtype == torch.float32
    assert len(base.tokenizer) < base.hf.config.vocab_size, "no unused row for a mask token"
    task = embedded_task("word-problems", 16)
    prompts = [base.encode(q.prompt) for q in task.questions]
    answers: list[list[int]] = [[] for _ in prompts]
    for chunk in base.decoder.decode(prompts, max_new_tokens=320):
        answers[chunk.row] += chunk.token_ids
    texts = [base.tokenizer.decode(ids, skip_special_tokens=True) for ids in answers]
    assert sum(bool(task.grader.grade(t, q.answer)) for t, q in zip(texts, task.questions, strict=True)) >= 12


def test_full_is_exact(full) -> None:
    """Exact must change no token of its output."""
    assert full.mtp.mask_token_id == 2040
    for example in examples("word-problems", "test", 6):
        exact = full.generate(example.prompt, policy=mt.Exact(0.5))
        plain = full.generate(example.prompt, policy=mt.NextToken())
        assert exact.token_ids == plain.token_ids
        assert exact.forward_passes < plain.forward_passes
        assert "".join(c.text for c in exact.chunks) == exact.text == plain.text


def test_gated_loses_nothing_of_the_base(base, gated) -> None:
    """Under Exact, the adapted model must write what the original writes, in far fewer passes."""
    folder = checkpoint("gated")
    assert (folder / "adapter_model.safetensors").stat().st_size <= MOST_BYTES
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "../base"
    tokens = passes = 0
    for example in examples("word-problems", "test", 6):
        plain = base.generate(example.prompt, policy=mt.NextToken())
        exact = gated.generate(example.prompt, policy=mt.Exact(0.5))
        assert exact.token_ids == plain.token_ids
        assert gated.generate(example.prompt, policy=mt.NextToken()).token_ids == plain.token_ids
        tokens, passes = tokens + len(exact.token_ids), passes + exact.forward_passes
    assert tokens / passes > 3


def test_the_draft_model_speaks_the_base_s_language() -> None:
    """Assisted generation compares token ids. A draft model with another vocabulary would draft nonsense and lose a comparison
    that it might have won."""
    draft, base = mt.load(rival("draft")), mt.load(checkpoint("base"))
    assert draft.tokenizer.get_vocab() == base.tokenizer.get_vocab()
    assert draft.hf.num_parameters() < 0.11 * base.hf.num_parameters()
