"""A gated checkpoint: the served output is the original model's, and the adapter only makes it faster."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from multitoken.decoding import ConfAdapt, Sampling
from multitoken.errors import MultitokenError
from multitoken.quickstart.embedded import checkpoint as checkpoint_of

from .conftest import BASE, Case, Reference, engine

Generate = Callable[..., list[list[int]]]
ADAPTER = checkpoint_of("gated")


def write_whole(folder: Path) -> Path:
    """Base and adapter in one folder, in the layout of `multitoken export`."""
    for file in BASE.iterdir():
        shutil.copyfile(file, folder / file.name)
    for file in ADAPTER.glob("tokenizer*"):
        shutil.copyfile(file, folder / file.name)
    adapter = folder / "mtp_adapter"
    adapter.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copyfile(ADAPTER / name, adapter / name)
    shutil.copytree(ADAPTER / "mtp_head", folder / "mtp_head")
    config = json.loads((BASE / "config.json").read_text())
    config["mtp"] = json.loads((ADAPTER / "adapter_config.json").read_text())["mtp"]
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: Any) -> Path:
    return write_whole(tmp_path_factory.mktemp("gated"))


@pytest.fixture(scope="module")
def llm(checkpoint: Path) -> Iterator[Any]:
    with engine(model=str(checkpoint), additional_config={"mtp": {"adaptive": False}}) as llm:
        yield llm


def test_forty_requests_are_the_original_models(llm: Any, generate: Generate, original: Reference, prompts) -> None:
    """An update at a real token, or a mask's KV entry that stays, would change tokens. Requests are greedy and sampled, with a
    cold and a warm cache."""
    cases = [
        Case(p, (1, 2, 40, 90, 90)[i % 5], Sampling(0.9, i, top_k=40) if i % 3 == 0 else None)
        for i, p in enumerate(prompts)
    ]
    expected = original.plain(cases)
    assert generate(llm, cases) == expected
    assert generate(llm, cases) == expected


def test_fewer_passes_than_tokens(llm: Any, generate: Generate, prompts, monkeypatch) -> None:
    """An adapter that does not act would still give the right tokens, but only one per pass."""
    from multitoken.vllm.sampler import Sampler

    passes, first = [], Sampler.__call__
    monkeypatch.setattr(Sampler, "__call__", lambda *args: passes.append(1) or first(*args))
    tokens = sum(len(generate(llm, [Case(prompt, 90)])[0]) for prompt in prompts[:4])
    assert len(passes) < 0.7 * tokens


def test_a_pass_without_masks_knows_nothing_of_the_adapter(
    llm: Any, generate: Generate, original: Reference, prompts, monkeypatch
) -> None:
    """Plain decoding must cost what it costs without multitoken: such a pass goes through the original layers, and it is an
    ordinary step for the model runner. The original shares every weight and the KV cache with the gated model."""
    from multitoken.vllm.gate import Gated

    runner = llm.llm_engine.model_executor.driver_worker.worker.model_runner
    adapted, speculative = [], []
    run, sample = Gated.run, runner._sample
    monkeypatch.setattr(Gated, "run", lambda *args: adapted.append(1) or run(*args))
    monkeypatch.setattr(
        runner, "_sample", lambda *args: speculative.append(runner.speculative_config is not None) or sample(*args)
    )
    plain = [Case(p, 40, extra={"mtp_policy": "next-token"}) for p in prompts[:4]]
    assert generate(llm, plain) == original.plain(plain)
    assert not adapted and not any(speculative)
    cases = [Case(p, 40) for p in prompts[:4]]
    assert generate(llm, cases) == original.plain(cases)
    assert adapted and any(speculative)


def test_the_original_has_no_weights_of_its_own(llm: Any) -> None:
    """A second copy of the weights would take twice the memory."""
    from multitoken.vllm.original import original_of

    worker = llm.llm_engine.model_executor.driver_worker.worker
    gated = worker.model_runner.get_model()
    original = original_of(gated, worker.vllm_config)
    ours = {id(tensor) for tensor in [*gated.parameters(), *gated.buffers()]}
    assert {id(tensor) for tensor in [*original.parameters(), *original.buffers()]} <= ours
    assert not any(tensor.is_meta for tensor in original.state_dict().values())


def test_an_adapter_without_a_mask_vector_sees_noise(
    tmp_path: Path, generate: Generate, original: Reference, prompts, monkeypatch
) -> None:
    """An adapter of UNO's kind. At masks, the embedding must see the tokens that our own engine feeds there, chosen by position.
    Otherwise every draft is worth less."""
    import torch
    from safetensors.torch import load_file, save_file

    from multitoken.decoding.noise import noise_ids
    from multitoken.vllm.gate import Masks

    folder = write_whole(tmp_path)
    weights = folder / "mtp_adapter" / "adapter_model.safetensors"
    state = load_file(weights)
    del state["base_model.model.mask_vector"]
    save_file(state, weights)
    seen, fill = [], Masks.fill

    def checked(self: Masks, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        filled = fill(self, ids, positions)
        expected = torch.where(ids == self.mask_id, noise_ids(positions, 2048).to(ids.dtype), ids)
        seen.append(torch.equal(filled, expected) and bool((ids == self.mask_id).any()))
        return filled

    monkeypatch.setattr(Masks, "fill", checked)
    with engine(model=str(folder), additional_config={"mtp": {"adaptive": False}}) as llm:
        cases = [Case(p, 40) for p in prompts[:6]]
        assert generate(llm, cases) == original.plain(cases)
    assert seen and all(seen)


def test_however_many_masks_are_fed(
    checkpoint: Path, generate: Generate, original: Reference, prompts, monkeypatch
) -> None:
    """The pacer chooses the number of masks by measured times. Here it is replaced by one whose number changes from step to step,
    from none to all."""
    from multitoken.vllm.pacing import Pacer

    asked: list[int] = []

    def masks(pacer: Pacer, names: list[str], *_: object) -> list[int]:
        asked.append(len(names))
        return [(15, 0, 0, 3, 7, 1)[(len(asked) + i % 2) % 6] for i in range(len(names))]

    monkeypatch.setattr(Pacer, "masks", masks)
    cases = [Case(p, 90, Sampling(0.9, i) if i % 3 == 0 else None) for i, p in enumerate(prompts[:20])]
    with engine(model=str(checkpoint)) as llm:
        assert generate(llm, cases) == original.plain(cases)
    assert max(asked) == 16


def test_compiled(checkpoint: Path, generate: Generate, original: Reference, prompts) -> None:
    """As `vllm serve` runs by default. The compiled code must look for the masks of each step, not only of the first."""
    cases = [Case(p, 60) for p in prompts[:20]]
    with engine(model=str(checkpoint), enforce_eager=False) as llm:
        assert generate(llm, cases) == original.plain(cases)


def test_confadapt_is_that_of_our_decoder(checkpoint: Path, generate: Generate, prompts) -> None:
    """What is emitted at masks is the adapter's own prediction, so it must be the same adapter, layer by layer."""
    reference = Reference(checkpoint)
    cases = [Case(prompt, 60) for prompt in prompts[:24]]
    expected = reference.chunks(cases, [ConfAdapt(0.5, reference.decoder.trained_k)] * len(cases))
    with engine(model=str(checkpoint), additional_config={"mtp": {"policy": "confadapt", "threshold": 0.5}}) as llm:
        assert generate(llm, cases) == [[token for chunk in row for token in chunk] for row in expected]


def test_what_is_not_done_yet_is_refused(checkpoint: Path) -> None:
    """An option that is not supported must be refused, not approximated."""
    from vllm import EngineArgs

    with pytest.raises(MultitokenError, match="enable_lora"):
        EngineArgs(model=str(checkpoint), dtype="float32", max_model_len=512, enable_lora=True).create_engine_config()


def test_a_mask_beyond_the_vocabulary(checkpoint: Path, generate: Generate, prompts, tmp_path_factory: Any) -> None:
    """Llama 2 and GPT-2 have no free row in the embedding matrix. The mask's id is then beyond that matrix and beyond the logits.
    Guards against a bug: such checkpoints could not be served."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("beyond") / "whole"
    shutil.copytree(checkpoint, folder)
    config = json.loads((folder / "config.json").read_text())
    rows = config["mtp"]["mask_token_id"]
    tensors = load_file(folder / "model.safetensors")
    cut = {name: t[:rows].clone() if t.shape[0] == config["vocab_size"] else t for name, t in tensors.items()}
    assert rows < config["vocab_size"] and sum(cut[name].shape != tensors[name].shape for name in cut) > 0
    save_file(cut, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": rows}))
    cases = [Case(p, 60, Sampling(0.9, i, top_k=40) if i % 3 == 0 else None) for i, p in enumerate(prompts[:12])]
    cases += [Case(prompts[0], 20, more={"frequency_penalty": 0.5}), Case(prompts[1], 20, Sampling(0.8, 3))]
    expected = Reference(folder, adapted=False).plain(cases[:12])
    with engine(model=str(folder), additional_config={"mtp": {"adaptive": False}}) as llm:
        found = generate(llm, cases)
        assert found[:12] == expected and all(0 <= token < rows for ids in found for token in ids)
        (allowed,) = generate(llm, [Case(prompts[0], 4, eos=False, more={"allowed_token_ids": [5, 6]})])
        assert len(allowed) == 4 and set(allowed) <= {5, 6}


def write_gemma(folder: Path) -> None:
    """A random Gemma 3, which scales its embeddings, and an adapter for it that has a large effect."""
    import torch
    from safetensors.torch import save_file
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    from multitoken.decoding.gate import GatedAdapter, adaptable_layers
    from multitoken.decoding.gate_file import peft_settings, to_peft
    from tests.tiny import tiny_tokenizer

    tokenizer = tiny_tokenizer(128, extra=["<MTP>"])
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=128, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=32, max_position_embeddings=512, sliding_window=512, initializer_range=0.3,
        layer_types=["sliding_attention", "full_attention"], bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    model = Gemma3ForCausalLM(config).eval()
    adapter = GatedAdapter(model, mask_id=127, rank=4, layers=adaptable_layers(model, "self_attn"))
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    mtp: dict[str, Any] = {"k": 4, "mask_token_id": 127, "mask_token": "<MTP>", "method": "gated", "base_name": "b"}
    mtp |= {"base_hash": "h", "format_version": 2, "draft_head": 0}
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(json.loads((folder / "config.json").read_text()) | {"mtp": mtp}))
    (folder / "mtp_adapter").mkdir()
    save_file(to_peft(adapter), folder / "mtp_adapter" / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "mtp_adapter" / "adapter_config.json").write_text(json.dumps(peft_settings(adapter, "b") | {"mtp": mtp}))


def test_a_family_that_scales_its_embeddings(generate: Generate, tmp_path_factory: Any) -> None:
    """vLLM's Gemma scales the output of its embedding, the mask's vector included. Guards against a bug: a vector that had been
    inserted after the scaling was scaled twice, and drafts were worth nothing. ConfAdapt confirms nothing, so under it the
    predictions at masks are the text."""
    folder = tmp_path_factory.mktemp("gemma")
    write_gemma(folder)
    cases = [Case([7 + i, 8, 9 + 2 * i, 10], 24, eos=False) for i in range(4)]
    expected = [[t for chunk in row for t in chunk] for row in Reference(folder).chunks(cases, [ConfAdapt(0.0)] * 4)]
    with engine(model=str(folder), additional_config={"mtp": {"policy": "confadapt", "threshold": 0.0}}) as llm:
        assert generate(llm, cases) == expected
