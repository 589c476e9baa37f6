"""What loads, what is refused before its weights are read, and what a refusal says."""

import json
import logging

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BertConfig,
    Gemma3Config,
    LlamaForCausalLM,
    Qwen3_5Config,
    T5Config,
    ViTConfig,
)

from multitoken.errors import ModelError, UnsupportedModelError, UsageError
from multitoken.models.gated import can_be_found
from multitoken.models.loading import load_causal_lm
from tests.tiny import tiny_gpt2, tiny_llama, tiny_qwen3, tiny_tokenizer


@pytest.fixture
def folder(tmp_path):
    """A complete tiny checkpoint, which the tests damage."""
    tokenizer = tiny_tokenizer(60)
    tiny_llama(tokenizer).save_pretrained(tmp_path / "tiny")
    tokenizer.save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def edit_config(folder, **change):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


@pytest.mark.parametrize("build", [tiny_llama, tiny_qwen3, tiny_gpt2])
def test_a_folder_loads_in_eval_mode_and_the_asked_dtype(build, tmp_path):
    """Guards against dropout left on, the file's dtype in place of the requested one, and a path as the model's
    name."""
    tokenizer = tiny_tokenizer(60)
    model = build(tokenizer, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "tiny")
    tokenizer.save_pretrained(tmp_path / "tiny")
    loaded = load_causal_lm(tmp_path / "tiny")
    assert loaded.name == "tiny" and loaded.mtp is None and not loaded.model.training
    assert loaded.model.dtype == torch.float32 and loaded.model.config._attn_implementation == "sdpa"
    assert loaded.tokenizer("w5 w6")["input_ids"] == [5, 6]
    ids = torch.tensor([[5, 6, 7]])
    for parameter in model.parameters():
        parameter.data = parameter.data.float()
    assert torch.equal(loaded.model(ids).logits, model(ids).logits)
    assert load_causal_lm(str(tmp_path / "tiny"), dtype=torch.bfloat16).model.dtype == torch.bfloat16


def test_what_is_not_there_is_named(folder, tmp_path):
    """Guards against a mistyped path being looked up on the hub, with a network error as the answer."""
    for path in ("/no/such/folder", "./nothing", "runs/a/b", tmp_path / "nothing"):
        with pytest.raises(ModelError, match=r"does not exist; expected a folder with config\.json"):
            load_causal_lm(path)
    with pytest.raises(ModelError, match="is a file"):
        load_causal_lm(folder / "config.json")
    with pytest.raises(ModelError, match=r"has no config\.json"):
        load_causal_lm(tmp_path)


def test_a_hub_name_without_network(monkeypatch):
    """Guards against a traceback of the hub client where the fix is the spelling, the network or a folder."""

    def offline(*arguments, **keywords):
        raise OSError("We couldn't connect to 'https://huggingface.co'\nmore lines")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # otherwise it tries again and again
    monkeypatch.setattr(AutoConfig, "from_pretrained", offline)
    with pytest.raises(ModelError, match=r"'some/model' from the Hugging Face hub: We couldn't connect .* network"):
        load_causal_lm("some/model")


def test_a_mistyped_name_without_network_is_refused_at_once(monkeypatch, tmp_path):
    """Guards against the hub client's retries: half a minute and six lines for each file that it looks for."""
    asked: list[str] = []

    class Unreachable:
        def head(self, url, **_):
            asked.append(url)
            raise OSError("Name or service not known")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("multitoken.models.gated.is_offline_mode", lambda: False)
    monkeypatch.setattr("multitoken.models.gated.get_session", Unreachable)
    monkeypatch.setattr("multitoken.models.gated.cached_file", lambda *a, **k: pytest.fail("the client was used"))
    with pytest.raises(
        ModelError, match=r"there is no folder 'nofolder', and the Hugging Face hub, .* cannot be reached"
    ):
        load_causal_lm("nofolder")
    assert len(asked) == 2
    monkeypatch.setattr("multitoken.models.gated.try_to_load_from_cache", lambda name, file: tmp_path / file)
    assert can_be_found("nofolder") and len(asked) == 2, "a model in the cache needs no network"


@pytest.mark.parametrize("weights", [True, False])
def test_a_corrupt_config(folder, weights):
    """Guards against a JSON traceback, and against a complaint about the weights where the config is the problem."""
    (folder / "config.json").write_text("{")
    if not weights:
        (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"cannot read config\.json"):
        load_causal_lm(folder)


def test_a_broken_mtp_block_is_found_before_the_weights(folder, monkeypatch):
    """Guards against minutes of loading before a refusal for which config.json alone is enough."""
    edit_config(folder, mtp={"k": 1})
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *a, **k: pytest.fail("weights were read"))
    with pytest.raises(ModelError, match="mtp lacks"):
        load_causal_lm(folder)


def test_a_tokenizer_of_another_checkpoint(folder):
    """Guards against a mask token whose id the tokenizer gives to a word."""
    block = {"k": 2, "mask_token_id": 7, "mask_token": "w8", "method": "full", "base_name": "b", "base_hash": "h"}
    edit_config(folder, mtp=block | {"format_version": 1})
    with pytest.raises(ModelError, match="gives 'w8' the id 8"):
        load_causal_lm(folder)


def test_no_tokenizer(folder):
    """Guards against an empty tokenizer made up from config.json."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(ModelError, match="cannot read the tokenizer"):
        load_causal_lm(folder)


def test_weights_cut_short(folder):
    """Guards against a half-copied file."""
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelError, match="cannot read the weights"):
        load_causal_lm(folder)


def test_missing_weights_are_not_random_ones(folder):
    """Guards against what transformers does here: it warns and continues with random numbers."""
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"the weights lack model\.layers\.1\.mlp\.up_proj\.weight \(1 in all\)"):
        load_causal_lm(folder)


def test_weights_of_another_shape(folder):
    """Guards against a config and weights of two different models."""
    edit_config(folder, intermediate_size=48)
    with pytest.raises(ModelError, match="cannot read the weights"):
        load_causal_lm(folder)


def test_pickled_weights_are_refused(folder):
    """Guards against weight files that run code when they are loaded."""
    torch.save({}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"no \*\.safetensors file \(found pytorch_model\.bin"):
        load_causal_lm(folder)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (T5Config(architectures=["T5ForConditionalGeneration"]), "T5ForConditionalGeneration, an encoder-decoder"),
        (BertConfig(architectures=["BertForMaskedLM"]), "BertForMaskedLM, an encoder whose tokens see their future"),
        (ViTConfig(), "vit: transformers has no causal language model"),
        (Gemma3Config(architectures=["Gemma3ForConditionalGeneration"]), "Gemma3ForConditionalGeneration, which wraps"),
        (Qwen3_5Config(), "qwen3_5, which wraps a language model .* text-only checkpoints are supported"),
    ],
)
def test_other_kinds_of_model_are_refused_from_their_config(config, says, folder):
    """Guards against a model that loads and then decodes wrongly (there are no such weights in the folder)."""
    (folder / "config.json").unlink()
    config.save_pretrained(folder)
    with pytest.raises(UnsupportedModelError, match=says):
        load_causal_lm(folder)


def test_attention_that_takes_no_block_mask(folder, monkeypatch, caplog):
    """Guards against flash attention, which drops the mask, against flex attention, which adds a boolean mask as 0 and
    1, and against a silent change of the kernel."""
    with pytest.raises(UsageError, match="'flash_attention_2'; expected one of sdpa, eager"):
        load_causal_lm(folder, attn_implementation="flash_attention_2")
    with pytest.raises(
        UsageError, match=r"'flex_attention'; expected one of sdpa, eager .*flex_attention adds one as numbers"
    ):
        load_causal_lm(folder, attn_implementation="flex_attention")
    monkeypatch.setattr(LlamaForCausalLM, "_supports_sdpa", False)
    with caplog.at_level(logging.WARNING, logger="multitoken"):
        loaded = load_causal_lm(folder)
    assert loaded.model.config._attn_implementation == "eager"
    assert "LlamaForCausalLM does not support sdpa" in caplog.text
