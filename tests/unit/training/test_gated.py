"""Gated adaptation end to end: the base is unchanged; the adapter is small, names its base, and can be resumed."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

import multitoken as mt
from benchmarks.tiny_families import tiny_config
from multitoken.config import make_config
from multitoken.errors import ModelError, UsageError
from multitoken.models import placement, quantize
from multitoken.models.loading import load_causal_lm
from multitoken.models.quantize import Quantization
from multitoken.models.weights import parameter_hash
from multitoken.training.trainer import BlockTrainer
from tests.tiny import tiny_llama, tiny_tokenizer
from tests.unit.training.project import PROMPTS, make_project
from tests.unit.training.project import run as project_run


@pytest.fixture(params=[64, 60], ids=["a free row", "no free row"])
def project(tmp_path, request):
    return make_project(tmp_path, PROMPTS, vocab_size=request.param)


def run(project, name: str, **options):
    return project_run(project, name, **({"method": "gated", "rank": 4, "max_new_tokens": 12} | options))


def adapter_weights(folder):
    return load_file(folder / "adapter_model.safetensors")


def test_nothing_of_the_original_is_lost(project) -> None:
    """Exact decoding of the adapted model must equal the original's next-token decoding, both loaded from their
    folders."""
    before = load_causal_lm(project / "base")
    run(project, "adapter", steps=30)
    model, base = mt.load(project / "adapter"), mt.load(project / "base")
    assert parameter_hash(model.hf) == parameter_hash(before.model)
    assert model.mtp is not None and model.mtp.method == "gated" and model.mtp.base_hash == before.weight_hash
    sizes = []
    for prompt in ("w7 w8", "w20 w21 w22", "w33"):
        plain = base.generate(prompt, policy=mt.NextToken(), max_new_tokens=20)
        exact = model.generate(prompt, policy=mt.Exact(0.0), max_new_tokens=20, adaptive=False)
        assert exact.token_ids == plain.token_ids
        assert exact.text == plain.text
        sizes += [len(chunk.token_ids) for chunk in exact.chunks]
    assert max(sizes) > 1, "no draft was ever right: nothing was learned"
    with pytest.raises(mt.DecodingError, match="contains the mask token"):
        model.generate("w7 <MTP> w8")


def test_a_run_goes_on_with_an_adapter_and_its_head(project) -> None:
    """An untrained draft head with a trained adapter would draft worse than before, for no visible reason."""
    run(project, "first", steps=6)
    run(project, "next", steps=1, learning_rate=1e-9, start_from=str(project / "first"))
    for file in ("adapter_model.safetensors", "mtp_head/draft_head.safetensors"):
        before, after = load_file(project / "first" / file), load_file(project / "next" / file)
        assert before.keys() == after.keys()
        assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in before), file
    with pytest.raises(UsageError, match="does not fit rank 2"):
        run(project, "other", steps=1, rank=2, start_from=str(project / "first"))


def test_an_adapter_grows_in_rank_and_drafts_as_before(project) -> None:
    """What the smaller rank has learned is kept exactly. The new directions of the larger rank add nothing at first,
    and they are trained."""
    run(project, "small", steps=6)
    run(project, "same", steps=1, rank=12, learning_rate=1e-12, start_from=str(project / "small"))
    small, same = mt.load(project / "small"), mt.load(project / "same")
    prompt = "w7 w8 w20"
    chunks = [
        [c.confidences for c in model.generate(prompt, policy=mt.StaticK(4), max_new_tokens=12).chunks]
        for model in (small, same)
    ]
    for before, after in zip(*chunks, strict=True):
        assert after == pytest.approx(before, abs=1e-5)
    run(project, "grown", steps=2, rank=12, start_from=str(project / "small"))
    weights = load_file(project / "grown" / "adapter_model.safetensors")
    ups = [tensor for name, tensor in weights.items() if name.endswith("lora_B.weight")]
    assert ups and all(up.shape[1] == 12 and (up[:, 4:] != 0).any() for up in ups)


def test_adapter_moves_with_its_base_and_refuses_another(project) -> None:
    """A copied base and adapter must work in their new folder. Other weights under the same name must be refused."""
    run(project, "adapter", steps=1)
    moved = project / "elsewhere"
    shutil.copytree(project / "base", moved / "base")
    shutil.copytree(project / "adapter", moved / "adapter")
    assert mt.load(moved / "adapter").mtp is not None
    alone = project / "alone" / "deep" / "adapter"
    shutil.copytree(project / "adapter", alone)
    with pytest.raises(ModelError, match=r"is an adapter of base.*as base"):
        mt.load(alone)
    assert mt.load(alone, base=project / "base").mtp is not None
    other = tiny_tokenizer()
    tiny_llama(other, vocab_size=64, seed=1).save_pretrained(project / "other")
    other.save_pretrained(project / "other")
    with pytest.raises(ModelError, match="was made for base with the weights tensors:"):
        mt.load(alone, base=project / "other")
    with pytest.raises(UsageError, match="is not an adapter"):
        mt.load(project / "base", base=project / "other")


@pytest.mark.parametrize(
    ("broken", "message"),
    [("mtp", "mtp block"), ("weights", "cannot read .*adapter_model"), ("layers", "which belongs to no layer")],
)
def test_a_damaged_adapter_is_named(project, broken: str, message: str) -> None:
    """Guards against an incomplete adapter, which would decode but draft nonsense."""
    run(project, "adapter", steps=1)
    config = project / "adapter" / "adapter_config.json"
    settings = json.loads(config.read_text())
    if broken == "mtp":
        del settings["mtp"]
    elif broken == "layers":
        settings["target_modules"] = settings["target_modules"][1:]
    else:
        weights = project / "adapter" / "adapter_model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-40])
    config.write_text(json.dumps(settings))
    with pytest.raises(ModelError, match=message):
        mt.load(project / "adapter")


def test_resume_is_bit_identical(project, monkeypatch) -> None:
    """A checkpoint holds only the adapter. Everything else must be restored as it was."""
    run(project, "whole")
    plain, seen = BlockTrainer.compute_loss, []

    def killed(self, *args, **kwargs):
        seen.append(self.state.global_step)
        if len(seen) == 6:
            raise KeyboardInterrupt
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(BlockTrainer, "compute_loss", killed)
    with pytest.raises(KeyboardInterrupt):
        run(project, "cut")
    monkeypatch.setattr(BlockTrainer, "compute_loss", plain)
    assert run(project, "cut", resume=True).steps == 6
    whole, cut = adapter_weights(project / "whole"), adapter_weights(project / "cut")
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_options_that_would_do_nothing_are_refused() -> None:
    """Whoever gives an option expects an effect."""
    given = {"model": "m", "data": "d", "output": "o"}
    with pytest.raises(UsageError, match="next_token_weight needs method=full or lora"):
        make_config(**given, method="gated", next_token_weight=0.5)
    with pytest.raises(UsageError, match="rank and layers belong to method=gated"):
        make_config(**given, method="full", rank=8)


def test_a_pattern_that_matches_no_layer_is_refused_with_those_there_are(project) -> None:
    """With such a pattern, the mask vector alone would be trained."""
    with pytest.raises(
        UsageError, match=r"no layer of LlamaForCausalLM matches 'query'; layers that can be adapted: .*q_proj"
    ):
        run(project, "adapter", layers="query")


@pytest.mark.parametrize(("kind", "weight"), [("int8", "Int8Tensor"), ("nf4", "Params4bit")])
def test_a_quantised_base_keeps_its_own_next_tokens(project, kind: str, weight: str) -> None:
    """The adapter is trained on the quantised weights, and Exact promises the text of the quantised model."""
    run(project, "adapter", steps=10, quantize=kind)
    plain = mt.load(project / "base", quantize=kind)
    model = mt.load(project / "adapter", quantize=kind)
    assert type(plain.hf.model.layers[0].mlp.up_proj.weight).__name__ == weight
    for prompt in ("w7 w8", "w20 w21 w22"):
        exact = model.generate(prompt, policy=mt.Exact(0.0), max_new_tokens=20, adaptive=False)
        assert exact.token_ids == plain.generate(prompt, policy=mt.NextToken(), max_new_tokens=20).token_ids
    assert mt.load(project / "adapter").mtp is not None, "the full-precision base is the same model to the adapter"
    with pytest.raises(UsageError, match="quantize is 'int4'; expected one of none, int8, nf4"):
        mt.load(project / "base", quantize="int4")


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_a_quantised_base_is_packed_as_it_is_read(project, kind: str, monkeypatch) -> None:
    """A model that fits in memory only when quantised can be loaded. What cannot be quantised is refused before any
    weight is read."""
    whole = sum(parameter.numel() * 4 for parameter in mt.load(project / "base").hf.parameters())
    monkeypatch.setattr(placement, "available_memory", lambda device: int(0.9 * whole))
    with pytest.raises(mt.MultitokenError, match="takes"):
        mt.load(project / "base", dtype="float32")
    mt.load(project / "base", dtype="float32", quantize=kind)
    config = tiny_config("gpt2")
    with pytest.raises(UsageError, match="does not work with GPT2LMHeadModel: none of its layers is a"):
        Quantization(kind).spared(config, torch.float32, trust_remote_code=False)
    if kind == "nf4":
        with pytest.raises(UsageError, match="quantize=nf4 does not work with Mamba2ForCausalLM"):
            Quantization(kind).spared(tiny_config("mamba2"), torch.float32, trust_remote_code=False)
    monkeypatch.setattr(quantize, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"install it: pip install 'multitoken\[quantize\]'"):
        mt.load(project / "base", quantize=kind)
