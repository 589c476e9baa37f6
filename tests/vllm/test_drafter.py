"""An exported model as vLLM's own parallel drafter. This needs none of our code, only `pard_token` in its config.json."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from multitoken.checkpoints.export import export

from .conftest import BASE, CHECKPOINT, Case, Reference, engine

Generate = Callable[..., list[list[int]]]
K = 6


@pytest.fixture(scope="module")
def drafter(tmp_path_factory: Any) -> Path:
    return export(CHECKPOINT, tmp_path_factory.mktemp("drafter") / "exported")


def check(drafter: Path, generate: Generate, original: Reference, prompts: list[list[int]], **more: Any) -> None:
    """The output must be the target's own, in far fewer of its passes. Masks that are not recognised as masks would give no
    drafts that are confirmed."""
    cases = [Case(prompt, 60) for prompt in prompts[:16]]
    speculative = {
        "method": "draft_model",
        "model": str(drafter),
        "num_speculative_tokens": K,
        "parallel_drafting": True,
    }
    with engine(model=str(BASE), speculative_config=speculative | more) as llm:
        assert generate(llm, cases) == original.plain(cases)
        counts = {metric.name: metric.value for metric in llm.get_metrics() if hasattr(metric, "value")}
    accepted = counts["vllm:spec_decode_num_accepted_tokens"] / counts["vllm:spec_decode_num_drafts"]
    assert accepted > 2.5, "drafting one token and repeating it would reach one"


def test_the_output_is_the_targets(drafter: Path, generate: Generate, original: Reference, prompts) -> None:
    """Our plugin is installed here. It must not change a target that was not adapted."""
    check(drafter, generate, original, prompts)


def test_a_mask_behind_the_targets_vocabulary(
    drafter: Path, generate: Generate, original: Reference, prompts, tmp_path: Path
) -> None:
    """If no row of the embedding was free, the mask has a new row, and vLLM must be told that the sizes differ."""
    folder = behind(drafter, tmp_path)
    with pytest.raises(ValueError, match="same vocabulary size"):
        check(folder, generate, original, prompts)
    check(folder, generate, original, prompts, use_heterogeneous_vocab=True)


def behind(drafter: Path, folder: Path) -> Path:
    """The drafter with its mask in a new row."""
    for file in drafter.iterdir():
        (folder / file.name).symlink_to(file)
    config = json.loads((drafter / "config.json").read_text())
    rows, mask = config["vocab_size"], config["pard_token"]
    config |= {"vocab_size": rows + 1, "pard_token": rows, "mtp": config["mtp"] | {"mask_token_id": rows}}
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps(config))
    weights = load_file(drafter / "model.safetensors")
    name = "model.embed_tokens.weight"
    weights[name] = weights[name][[*range(rows), mask]].contiguous()
    weights[name][mask] = 0
    (folder / "model.safetensors").unlink()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
