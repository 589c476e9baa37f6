"""The weight files of a checkpoint: whether they are complete, how large they are, and their hash."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from multitoken.errors import ModelError
from multitoken.models import weights
from multitoken.models.loading import load_causal_lm
from multitoken.models.weights import parameter_hash, stored_tensors, weight_files, weight_hash
from tests.tiny import tiny_llama, tiny_tokenizer


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path):
    """A tiny checkpoint of several shards."""
    tokenizer = tiny_tokenizer(60)
    tiny_llama(tokenizer).save_pretrained(tmp_path / "tiny", max_shard_size="20KB")
    tokenizer.save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def hash_of(folder) -> str:
    return weight_hash(weight_files(str(folder)))


def write(folder, tensors) -> None:
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_one_hash_for_one_set_of_weights(folder, tmp_path) -> None:
    """Guards against a hash that depends on the type of the file or on how it is sharded, or that misses a changed
    weight."""
    whole = {name: t for file in weight_files(str(folder)) for name, t in load_file(file).items()}
    write(tmp_path / "one", whole)
    write(tmp_path / "half", {name: t.bfloat16() for name, t in whole.items()})
    assert hash_of(folder) == hash_of(tmp_path / "one") == hash_of(tmp_path / "half")
    assert hash_of(folder).startswith("tensors:")
    name = "model.layers.1.mlp.up_proj.weight"
    changed = {n: t.clone() for n, t in whole.items()}
    changed[name].view(torch.int32)[0, 0] ^= 1 << 16  # the last bit of bf16
    write(tmp_path / "changed", changed)
    assert hash_of(tmp_path / "changed") != hash_of(folder)
    changed = dict(whole)
    changed[name.replace("up", "gate")], changed[name] = changed[name], changed[name.replace("up", "gate")]
    write(tmp_path / "swapped", changed)
    assert hash_of(tmp_path / "swapped") != hash_of(folder)


@pytest.mark.parametrize("piece", [7, 64, 2**25])
def test_pieces_cover_every_number(piece, tmp_path, monkeypatch) -> None:
    """Guards against leaving out the end of a tensor whose size is not a multiple of a piece."""
    monkeypatch.setattr(weights, "_PIECE", piece)
    numbers = {"a": torch.randn(5, 13), "b": torch.tensor(3.0), "c": torch.arange(9)}
    write(tmp_path / "before", numbers)
    seen = {hash_of(tmp_path / "before")}
    for name, tensor in numbers.items():
        for i in range(tensor.numel()):
            changed = {n: t.clone() for n, t in numbers.items()}
            changed[name].view(-1)[i] += 1
            write(tmp_path / f"{name}{i}", changed)
            seen.add(hash_of(tmp_path / f"{name}{i}"))
    assert len(seen) == 1 + 65 + 1 + 9


def test_a_base_in_fp16_is_the_same_base(folder, tmp_path) -> None:
    """bf16 weights below 6e-8 are zero in float16. A hash of the loaded model differed, and the error asked for another
    base."""
    small = {name: t.bfloat16() * 1e-9 for f in weight_files(str(folder)) for name, t in load_file(f).items()}
    shutil.copytree(
        folder,
        tmp_path / "small",
        ignore=lambda *_: [f.name for f in weight_files(str(folder))] + ["model.safetensors.index.json"],
    )
    save_file(small, tmp_path / "small" / "model.safetensors", metadata={"format": "pt"})
    found = {load_causal_lm(tmp_path / "small", dtype=d).weight_hash for d in ("float16", "bfloat16", "float32")}
    assert found == {hash_of(tmp_path / "small")}


def test_a_hash_is_remembered_while_files_stay(folder, cache, monkeypatch) -> None:
    """The second time costs nothing, and a file that has been written since is read again."""
    monkeypatch.setattr(weights, "_SETTLED", -1.0)
    before = hash_of(folder)
    assert len(list(cache.rglob("weight-hashes/*"))) == 1
    with monkeypatch.context() as closed:
        closed.setattr(weights, "_line", lambda piece: pytest.fail("read again"))
        assert hash_of(folder) == before
    shard = weight_files(str(folder))[0]
    save_file({n: t + 1 for n, t in load_file(shard).items()}, shard, metadata={"format": "pt"})
    assert hash_of(folder) != before


def test_a_file_of_this_moment_is_not_remembered(folder, cache) -> None:
    """A new file can still change within the same tick of the clock, and its time stamp would not show it."""
    hash_of(folder)
    assert not list(cache.rglob("weight-hashes/*"))


def test_a_cache_that_cannot_be_written_is_no_error(folder, cache, monkeypatch) -> None:
    monkeypatch.setattr(weights, "_SETTLED", -1.0)
    cache.write_text("a file")
    assert hash_of(folder) == hash_of(folder)


def test_half_a_checkpoint(folder) -> None:
    """Guards against minutes of loading before a missing or incomplete shard is reported."""
    first, second, *_ = weight_files(str(folder))
    content = second.read_bytes()
    second.write_bytes(content[:-100])
    with pytest.raises(
        ModelError, match=rf"{second.name}: cannot read the weights: it is cut short, .* copy the file again"
    ):
        load_causal_lm(folder)
    second.write_bytes(b"<html>")
    with pytest.raises(ModelError, match=rf"{second.name}: cannot read the weights"):
        stored_tensors([first, second])
    second.unlink()
    with pytest.raises(ModelError, match=rf"lacks {second.name} \(1 of \d+ weight files\)"):
        load_causal_lm(folder)


def test_checkpoints_of_before_are_still_known(folder, tmp_path) -> None:
    """Older checkpoints have a hash of a loaded model's parameters, in bf16."""
    loaded = load_causal_lm(folder)
    old = parameter_hash(loaded.model)
    assert old.startswith("sha256:") and old == parameter_hash(load_causal_lm(folder, dtype="bfloat16").model)
    loaded.check_base(old, "wrong")
    loaded.check_base(loaded.weight_hash, "wrong")
    with pytest.raises(ModelError, match=r"not tensors:[0-9a-f]{11}$"):
        loaded.check_base("tensors:0", "not {found}")


def test_an_index_that_is_broken(folder) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weights": {}}))
    with pytest.raises(ModelError, match=r"cannot read model\.safetensors\.index\.json"):
        load_causal_lm(folder)
