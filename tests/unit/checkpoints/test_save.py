"""A saved checkpoint is an ordinary Hugging Face folder that loads to the same model, or it does not exist."""

import errno
import json
import os

import pytest
import torch
import transformers.modeling_utils
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from multitoken.checkpoints.atomic import is_complete
from multitoken.checkpoints.save import save_checkpoint
from multitoken.errors import ModelError, OutputError
from multitoken.models.loading import load_causal_lm
from multitoken.models.mask_token import add_mask_token
from multitoken.models.mtp_config import MtpConfig
from multitoken.models.weights import parameter_hash
from tests.tiny import tiny_gpt2, tiny_llama, tiny_qwen3, tiny_tokenizer

IDS = torch.tensor([[5, 6, 7, 8]])


def adapted(build=tiny_llama, **config):
    tokenizer = tiny_tokenizer(60, chat_template="{{ messages[0]['content'] }}")
    model = build(tokenizer, **config)
    base_hash = parameter_hash(model)
    mask = add_mask_token(model, tokenizer)
    mtp = MtpConfig(
        k=4, mask_token_id=mask.id, mask_token=mask.token, method="full", base_name="tiny", base_hash=base_hash
    )
    return model, tokenizer, mtp


@pytest.mark.parametrize("build", [tiny_llama, tiny_qwen3, tiny_gpt2])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("shard", ["5GB", "10KB"])
def test_round_trip(build, tied, shard, tmp_path):
    """Guards against lost shards, a mask row that is not saved, and a tokenizer that gives the mask another id."""
    model, tokenizer, mtp = adapted(build, tie_word_embeddings=tied)
    save_checkpoint(model, tokenizer, mtp, tmp_path / "out", max_shard_size=shard, extra_files={"docs/a.md": "ä"})
    assert (len(list((tmp_path / "out").glob("*.safetensors"))) > 1) == (shard == "10KB")
    loaded = load_causal_lm(tmp_path / "out")
    assert loaded.mtp == mtp and is_complete(tmp_path / "out")
    ids = torch.cat([IDS, torch.tensor([[mtp.mask_token_id] * 3])], 1)
    assert torch.equal(loaded.model(ids).logits, model(ids).logits)
    assert loaded.tokenizer("w5 <MTP>", add_special_tokens=False)["input_ids"] == [5, mtp.mask_token_id]
    assert loaded.tokenizer.chat_template == tokenizer.chat_template
    assert (tmp_path / "out" / "docs" / "a.md").read_text(encoding="utf-8") == "ä"
    assert json.loads((tmp_path / "out" / "provenance.json").read_text())["mtp"] == mtp.to_dict()


def test_plain_transformers_loads_it(tmp_path):
    """Guards against a folder that only multitoken can read."""
    model, tokenizer, mtp = adapted()
    save_checkpoint(model, tokenizer, mtp, tmp_path / "out")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(again.generate(IDS, max_new_tokens=5), model.generate(IDS, max_new_tokens=5))


@pytest.mark.parametrize("tied", [True, False])
def test_dtype_casts_the_file_and_not_the_model(tied, tmp_path):
    """Guards against a float32 training that continues in bf16 after a save, and against saving tied weights twice."""
    model, tokenizer, mtp = adapted(tie_word_embeddings=tied)
    before, config_dtype = parameter_hash(model), model.config.dtype
    save_checkpoint(model, tokenizer, mtp, tmp_path / "out", dtype=torch.bfloat16)
    assert parameter_hash(model) == before and model.config.dtype == config_dtype and model.dtype == torch.float32
    saved = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.bfloat16} and ("lm_head.weight" in saved) != tied
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16).float()
    assert torch.equal(load_causal_lm(tmp_path / "out").model(IDS).logits, model(IDS).logits)


def test_a_generation_config_that_transformers_refuses_to_write(tmp_path):
    """Guards against hours of training that end in the error "temperature is set but do_sample is False"."""
    model, tokenizer, mtp = adapted()
    model.generation_config.temperature = 0.6
    model.generation_config.repetition_penalty = 1.2
    save_checkpoint(model, tokenizer, mtp, tmp_path / "out")
    saved = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert saved["temperature"] == 0.6 and saved["repetition_penalty"] == 1.2 and saved["eos_token_id"] == 2
    assert model.generation_config.temperature == 0.6, "the model keeps its own"


def test_the_tokenizer_must_know_the_mask(tmp_path):
    """Guards against saving the base's tokenizer with an adapted model."""
    model, _, mtp = adapted()
    with pytest.raises(ModelError, match="the tokenizer gives '<MTP>' the id 3"):
        save_checkpoint(model, tiny_tokenizer(60), mtp, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_extra_files_stay_inside(tmp_path):
    """Guards against writing over a file outside the folder."""
    model, tokenizer, mtp = adapted()
    with pytest.raises(OutputError, match=r"'\.\./a' is outside the folder"):
        save_checkpoint(model, tokenizer, mtp, tmp_path / "out", extra_files={"../a": ""})


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        KeyboardInterrupt(),
    ],
)
def test_a_failed_save_leaves_the_old_checkpoint(error, tmp_path, monkeypatch):
    """Guards against losing the last good checkpoint to a full disk or Ctrl-C. safetensors hides the system's error."""
    model, tokenizer, mtp = adapted()
    save_checkpoint(model, tokenizer, mtp, tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}

    def fail(*arguments, **keywords):
        raise error

    monkeypatch.setattr(transformers.modeling_utils, "safe_save_file", fail)
    expected = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else OutputError
    with pytest.raises(expected, match=None if expected is KeyboardInterrupt else "out: the disk is full"):
        save_checkpoint(model, tokenizer, mtp, tmp_path / "out", overwrite=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
