"""What a server reports at start-up, and whether vLLM is as we expect it. No engine is built here."""

import json
from pathlib import Path
from typing import Any

import pytest

from multitoken.errors import MultitokenError
from multitoken.vllm import private

from .conftest import BASE, CHECKPOINT


def config_of(model: Any = CHECKPOINT, **options: Any) -> Any:
    from vllm import EngineArgs

    return EngineArgs(
        model=str(model), dtype="float32", enforce_eager=True, max_model_len=512, **options
    ).create_engine_config()


@pytest.fixture
def changed(tmp_path: Path) -> Any:
    """The checkpoint with another `mtp` block."""

    def make(block: Any = None, generation: Any = None, **changes: Any) -> Path:
        for file in CHECKPOINT.iterdir():
            (tmp_path / file.name).symlink_to(file)
        for name, value in (("config.json", block), ("generation_config.json", generation)):
            settings = json.loads((CHECKPOINT / name).read_text())
            settings.pop("_from_model_config", None)
            if value is not None:
                settings["mtp"] = value
            elif name == "config.json":
                settings["mtp"] = {k: v for k, v in (settings["mtp"] | changes).items() if v != "gone"}
            (tmp_path / name).unlink()
            (tmp_path / name).write_text(json.dumps(settings))
        return tmp_path

    return make


def test_nothing_of_vllm_has_moved() -> None:
    """Checks every private name of vLLM that the plugin uses. Run this test first when a new release of vLLM comes out."""
    private.check_version()
    assert private.moved() == []


def test_a_moved_name_is_noticed(monkeypatch) -> None:
    """A check that never fails checks nothing."""
    monkeypatch.setitem(private._CALLS, "vllm.v1.sample.sampler:Sampler.gather_logprobs", ("logits",))
    monkeypatch.setitem(private._FIELDS, "vllm.v1.outputs:SamplerOutput", ("tokens",))
    monkeypatch.setitem(private._READ, "vllm.v1.gone:Nothing", ("self.x",))
    assert [line.split("(")[0] for line in private.moved()] == [
        "vllm.v1.sample.sampler:Sampler.gather_logprobs",
        "vllm.v1.outputs:SamplerOutput.tokens",
        "vllm.v1.gone:Nothing: self.x",
    ]


def test_the_checkpoint_alone_decides() -> None:
    """`vllm serve CHECKPOINT` needs no flag."""
    config = config_of()
    assert config.speculative_config.num_speculative_tokens == 30
    assert config.parallel_config.worker_cls == "multitoken.vllm.worker.Worker"
    assert config.scheduler_config.scheduler_cls is None, "exact needs nothing but vLLM's own scheduler"


def test_generation_config_and_server_options(changed) -> None:
    """The checkpoint's own decoding settings apply, and the server's options override them."""
    from multitoken.decoding import ConfAdapt, Exact
    from multitoken.vllm.plugin import settings_of

    model = changed(generation={"policy": "confadapt", "threshold": 0.7, "adaptive": True})
    config = config_of(model)
    assert settings_of(config).policy == ConfAdapt(0.7, 16)
    assert str(config.scheduler_config.scheduler_cls).endswith("FinalMasksScheduler")
    config = config_of(model, additional_config={"mtp": {"threshold": 0.6, "k": 4}})
    assert settings_of(config).policy == ConfAdapt(0.6, 4) and settings_of(config).drafts == 6
    assert settings_of(config_of(model, additional_config={"mtp": {"policy": "exact"}})).policy == Exact(0.5, 16)


def test_it_can_be_turned_off_and_leaves_other_models_alone() -> None:
    """An installed plugin must not change how anything else is served."""
    assert config_of(additional_config={"mtp": {"enabled": False}}).speculative_config is None
    assert config_of(BASE).speculative_config is None


def test_a_config_in_another_place_is_read_there(tmp_path: Path) -> None:
    """vLLM serves a folder without a config if `--hf-config-path` says where the config is. The plugin reads the same one."""
    for source in (BASE, CHECKPOINT):
        folder = tmp_path / source.name / "weights"
        folder.mkdir(parents=True)
        for file in source.iterdir():
            if file.name != "config.json":
                (folder / file.name).symlink_to(file)
        config = config_of(folder, hf_config_path=str(source))
        assert (config.speculative_config is None) == (source == BASE)


def test_a_config_that_only_vllm_can_read_is_left_to_vllm(monkeypatch) -> None:
    """Such as one in object storage, which vLLM fetches later. A server that asks for our decoding gets the error."""

    def unreadable(*_: Any, **__: Any) -> None:
        raise ValueError("no such place")

    monkeypatch.setattr("vllm.transformers_utils.config.get_config", unreadable)
    assert config_of(BASE).speculative_config is None
    with pytest.raises(ValueError, match="no such place"):
        config_of(BASE, additional_config={"mtp": {"policy": "exact"}})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block": "yes"}, "config.json: mtp is 'yes'; expected an object"),
        ({"k": "gone"}, "config.json: mtp lacks k"),
        ({"k": 1}, "mtp.k is 1; expected an int of at least 2"),
        ({"mask_token_id": 2048}, "mtp.mask_token_id is 2048; expected an id below vocab_size = 2048"),
        ({"mask_token_id": -1}, "mtp.mask_token_id is -1"),
        ({"format_version": 9}, "format_version is 9; this multitoken reads 1 to 2: upgrade"),
        ({"method": "gated"}, "gated checkpoint without its adapter in mtp_adapter/"),
        ({"draft_head": 1}, "names a draft head, but mtp_head/draft_head.safetensors is not there"),
        ({"draft_head": 7}, "draft head has version 7; this multitoken reads version 1"),
        ({"method": "magic"}, "mtp.method is 'magic'"),
        ({"generation": ["exact"]}, "generation_config.json: mtp is"),
        ({"generation": {"policy": "eager"}}, "policy is 'eager'"),
    ],
)
def test_a_broken_checkpoint(changed, changes, message) -> None:
    """A clear error at start-up, not wrong tokens later."""
    with pytest.raises(MultitokenError, match=message):
        config_of(changed(**changes))


def test_the_mtp_key_of_somebody_else(changed) -> None:
    """Other projects use the key `mtp` too. The error says how to serve such a model, and that works."""
    model = changed(block={"num_heads": 4})
    with pytest.raises(
        MultitokenError, match=r"unknown key 'num_heads'.*: --additional-config '\{\"mtp\": \{\"enabled\": false\}\}'$"
    ):
        config_of(model)
    assert config_of(model, additional_config={"mtp": {"enabled": False}}).speculative_config is None


def test_a_target_with_a_drafter_of_its_own_is_left_alone() -> None:
    """A user who asks for vLLM's own speculative decoding must get it, whatever the checkpoint could do."""
    speculative = {"method": "ngram", "num_speculative_tokens": 3}
    for options in ({}, {"additional_config": {"mtp": {"enabled": False}}}):
        config = config_of(speculative_config=speculative, **options)
        assert config.speculative_config.method == "ngram"
        assert "multitoken" not in str(config.parallel_config.worker_cls)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"additional_config": {"mtp": {"threshold": 1.7}}}, "threshold is 1.7"),
        ({"additional_config": {"mtp": {"k": 17}}}, "k is 17, but this model was trained for k up to 16"),
        ({"additional_config": {"mtp": {"polcy": "exact"}}}, "did you mean 'policy'"),
        ({"additional_config": {"mtp": {"enabled": "no"}}}, "mtp.enabled is 'no'"),
        ({"additional_config": {"mtp": {"adaptive": 3}}}, "mtp.adaptive is 3"),
        ({"additional_config": {"mtp": "exact"}}, "mtp is 'exact'; expected an object"),
        ({"max_num_batched_tokens": 30, "max_num_seqs": 4}, "max_num_batched_tokens is 30.*up to 31 tokens"),
        ({"scheduler_cls": "some.Scheduler"}, "scheduler_cls is 'some.Scheduler'"),
        (
            {
                "additional_config": {"mtp": {"policy": "exact"}},
                "speculative_config": {"method": "ngram", "num_speculative_tokens": 3},
            },
            "give one of them",
        ),
    ],
)
def test_options_that_cannot_be(options, message) -> None:
    """Each must be refused by name."""
    with pytest.raises(MultitokenError, match=message):
        config_of(**options)


def test_a_model_that_was_not_adapted() -> None:
    """A user who asks for several tokens per step must not silently get one."""
    with pytest.raises(MultitokenError, match="has no mtp block"):
        config_of(BASE, additional_config={"mtp": {"policy": "exact"}})


def test_an_unsupported_vllm(monkeypatch) -> None:
    """In another version of vLLM, the private names may mean something else."""
    import vllm

    monkeypatch.setattr(vllm, "__version__", "0.31.1")
    with pytest.raises(MultitokenError, match=r"vLLM is 0\.31\.1; multi-token decoding needs 0\.32\.\* or 0\.33\.\*"):
        config_of()
    assert config_of(additional_config={"mtp": {"enabled": False}}).speculative_config is None


def test_recurrent_models_are_refused(tmp_path: Path) -> None:
    """After a refused draft, vLLM rolls back the cache of attention. What a mask has written to a recurrent state stays there."""
    from transformers import Mamba2Config

    config = Mamba2Config(
        vocab_size=96,
        hidden_size=48,
        num_hidden_layers=2,
        state_size=8,
        num_heads=6,
        head_dim=16,
        n_groups=1,
        chunk_size=8,
    )
    block = json.loads((CHECKPOINT / "config.json").read_text())["mtp"] | {"mask_token_id": 95}
    settings = config.to_dict() | {"architectures": ["Mamba2ForCausalLM"], "mtp": block}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(MultitokenError, match="has recurrent layers"):
        config_of(tmp_path, skip_tokenizer_init=True)
