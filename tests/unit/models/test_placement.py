"""On which device and in which type a model is loaded, and which errors come before a large one is read."""

import pytest
import torch
from transformers import AutoModelForCausalLM

import multitoken as mt
from multitoken.errors import OutOfMemoryError, UsageError
from multitoken.models import placement
from multitoken.models.loading import load_causal_lm
from multitoken.models.placement import Placement, find_device, find_dtype
from multitoken.models.weights import Stored
from tests.tiny import tiny_llama, tiny_tokenizer
from tests.unit.training.project import PROMPTS, make_project, run

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def folder(tmp_path):
    tokenizer = tiny_tokenizer(60)
    tiny_llama(tokenizer, dtype=torch.bfloat16).save_pretrained(tmp_path / "tiny")
    tokenizer.save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def see(monkeypatch, *devices: str) -> None:
    """Make torch report these accelerators, which do not exist."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: bool(devices))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: len(devices))
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device(devices[0]))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)


def stored(dtype: str, *shape: int) -> Stored:
    return Stored("a", dtype, shape, None, 0, 0)  # pyright: ignore[reportArgumentType]


def test_auto_is_an_accelerator_if_there_is_one(monkeypatch) -> None:
    """Guards against float32 on the CPU where a GPU is idle."""
    see(monkeypatch)
    assert find_device() == CPU
    see(monkeypatch, "cuda", "cuda")
    assert find_device("auto") == GPU and find_device("cuda:1").index == 1 and find_device("cpu") == CPU
    assert Placement(GPU).for_transformers() == {"device_map": {"": "cuda"}}, "read straight to where it belongs"


def test_a_device_that_is_not_there(folder, monkeypatch) -> None:
    """Guards against an error of torch after the weights were read."""
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *a, **k: pytest.fail("weights were read"))
    see(monkeypatch)
    with pytest.raises(UsageError, match="'cuda', but torch sees no accelerator; use 'auto' or 'cpu'"):
        load_causal_lm(folder, device="cuda")
    with pytest.raises(UsageError, match="device is 'gpu'; expected auto, cpu, cuda, cuda:N, mps"):
        load_causal_lm(folder, device="gpu")
    see(monkeypatch, "cuda", "cuda")
    with pytest.raises(UsageError, match="'cuda:2', but there are 2 of them, from cuda:0 on"):
        load_causal_lm(folder, device="cuda:2")
    with pytest.raises(UsageError, match="'mps', but torch sees only cuda"):
        load_causal_lm(folder, device="mps")
    with pytest.raises(UsageError, match="device is 'cpu' and device_map 'auto'; give one of them"):
        load_causal_lm(folder, device="cpu", device_map="auto")
    with pytest.raises(UsageError, match="max_memory without device_map would do nothing"):
        load_causal_lm(folder, max_memory={0: "1GB"})


@pytest.mark.parametrize(
    ("file", "numbers", "device", "loaded"),
    [
        ("BF16", 10, CPU, torch.float32),
        ("F16", 10, CPU, torch.float32),
        ("BF16", 10, GPU, torch.bfloat16),
        ("F16", 10, GPU, torch.float16),
        ("F32", 10, GPU, torch.float32),
        ("F32", 2 * 10**9, GPU, torch.bfloat16),
    ],
)
def test_the_type_by_default(file, numbers, device, loaded, monkeypatch, caplog) -> None:
    """The checkpoint's own type on an accelerator, where a large float32 one is halved with a message; float32 on a
    CPU."""
    see(monkeypatch, "cuda")
    assert find_dtype("auto", device, [stored(file, numbers), stored("I64", 10**10)], "it") == loaded
    assert ("it: its float32 weights are held in bfloat16" in caplog.text) == (numbers > 10)


def test_a_type_that_cannot_be(folder, monkeypatch) -> None:
    with pytest.raises(UsageError, match="dtype is 'int4'; expected one of auto, float32, bfloat16, float16"):
        load_causal_lm(folder, dtype="int4")
    with pytest.raises(UsageError, match=r"dtype is torch\.int8; expected one of auto"):
        load_causal_lm(folder, dtype=torch.int8)
    see(monkeypatch, "cuda")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    with pytest.raises(UsageError, match=r"dtype is torch\.bfloat16, which cuda does not have"):
        find_dtype("bfloat16", GPU)
    assert find_dtype("auto", GPU, [stored("BF16", 10)]) == torch.float32


def test_too_little_memory_is_said_before_loading(folder, monkeypatch) -> None:
    """Guards against a machine that swaps or kills the process. The error says what would fit."""
    size = folder.joinpath("model.safetensors").stat().st_size
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *a, **k: pytest.fail("weights were read"))
    monkeypatch.setattr(placement, "available_memory", lambda device: int(1.5 * size))
    with pytest.raises(
        OutOfMemoryError, match=r"tiny takes 0\.00 GB in float32, and cpu has 0\.00 GB left; dtype='bfloat16' takes"
    ):
        load_causal_lm(folder)
    monkeypatch.setattr(placement, "available_memory", lambda device: size // 2)
    with pytest.raises(OutOfMemoryError, match="left; device_map='auto' spreads it"):
        load_causal_lm(folder)


@pytest.mark.parametrize("where", ["auto", "disk"])
def test_a_spread_model_decodes_as_one_in_one_place(where, tmp_path) -> None:
    """Some layers are on the disk and are loaded when they are needed. accelerate gives them a forward of its own. The
    gate's forward must wrap that one, and its weights must be on the device where the layer computes."""
    project = make_project(tmp_path, PROMPTS)
    run(project, "adapter", method="gated", rank=4, steps=2, max_new_tokens=8)
    layers = {"model.embed_tokens": "cpu", "model.layers.0": "disk", "model.layers.1": "cpu", "model.norm": "cpu"}
    layers |= {"model.rotary_emb": "cpu", "lm_head": "cpu"}
    options = {"device_map": layers, "offload_folder": tmp_path / "off"} if where == "disk" else {"device_map": "auto"}
    spread, whole = mt.load(project / "adapter", **options), mt.load(project / "adapter")
    assert (where == "disk") == any(p.is_meta for p in spread.hf.parameters())
    for prompt in ("w7 w8", "w20 w21 w22"):
        ours = spread.generate(prompt, policy=mt.Exact(0.0), max_new_tokens=12, adaptive=False)
        theirs = whole.generate(prompt, policy=mt.Exact(0.0), max_new_tokens=12, adaptive=False)
        assert ours.token_ids == theirs.token_ids and ours.forward_passes == theirs.forward_passes


@pytest.mark.parametrize("method", ["gated", "lora"])
def test_a_frozen_base_trains_in_its_own_type(method, tmp_path) -> None:
    """Guards against holding weights that never change in float32, at twice the size. The trained weights are
    float32."""
    from rich.console import Console

    from multitoken.config import make_config
    from multitoken.training.setup import make_ready, training_arguments

    project = make_project(tmp_path, PROMPTS[:4])
    options = {
        "method": method,
        "dtype": "bfloat16",
        "rank": 4,
        "max_new_tokens": 4,
        "device": "cpu",
        "report_to": "none",
    }
    config = make_config(model=project / "base", data=project / "data.jsonl", output=tmp_path / "o", steps=1, **options)
    setup = make_ready(
        config, tmp_path / "o.training", training_arguments(config, tmp_path / "o.training"), Console(quiet=True)
    )
    frozen = {p.dtype for n, p in setup.loaded.model.named_parameters() if not p.requires_grad}
    assert frozen == {torch.bfloat16}
    assert {p.dtype for p in setup.distillation.trained.parameters()} == {torch.float32}
    run(project, "short", method=method, rank=4, steps=2, dtype="bfloat16", max_new_tokens=4)
    assert mt.load(project / "short").mtp is not None


def test_a_cpu_that_is_slow_in_a_type_is_named_where_it_is_to_decode(folder, monkeypatch, caplog) -> None:
    """The warning must not appear where weights are only read and written, as in an export."""
    monkeypatch.setattr(placement, "cpu_gains_by_bf16", lambda: False)
    load_causal_lm(folder, dtype="bfloat16")
    mt.load(folder)
    assert "bfloat16" not in caplog.text
    mt.load(folder, dtype="bfloat16")
    assert "this CPU computes more slowly in bfloat16" in caplog.text
