"""A user's own LoRA for an adapted checkpoint, in PEFT's file format, as vLLM accepts it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from multitoken.evaluation.identity import Identity, Judge, compare

from .conftest import CHECKPOINT, Case, Reference, engine

Generate = Callable[..., list[list[int]]]
RANK, ALPHA = 4, 8
LAYERS = ("self_attn.q_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.down_proj")


@pytest.fixture
def merged(tmp_path: Path) -> Reference:
    """The checkpoint with a random LoRA added to its weights. The LoRA alone is written to `tmp_path`."""
    reference = Reference(CHECKPOINT)
    generator = torch.Generator().manual_seed(0)
    tensors: dict[str, torch.Tensor] = {}
    for name, module in reference.decoder.model.named_modules():
        if name.endswith(LAYERS):
            down = torch.randn(RANK, module.in_features, generator=generator) / module.in_features**0.5
            up = torch.randn(module.out_features, RANK, generator=generator) * 0.3
            tensors |= {f"base_model.model.{name}.lora_{side}.weight": t for side, t in (("A", down), ("B", up))}
            with torch.no_grad():
                module.weight += up @ down * (ALPHA / RANK)
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": ALPHA, "lora_dropout": 0.0}
    settings |= {"bias": "none", "target_modules": [layer.split(".")[1] for layer in LAYERS]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    return reference


def test_exact_is_next_token_decoding_with_it(
    merged: Reference,
    reference: Reference,
    generate: Generate,
    prompts,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every second request uses the LoRA. Its drafts, and the tokens that confirm them, come from the adapted model with the
    LoRA."""
    from vllm.lora.request import LoRARequest

    from multitoken.vllm.sampler import Sampler

    passes, original = [], Sampler.__call__
    monkeypatch.setattr(Sampler, "__call__", lambda *args: passes.append(1) or original(*args))
    cases = [Case(prompt, 60) for prompt in prompts[:16]]
    wears = [i % 2 == 0 for i in range(16)]
    # On CPUs, vLLM reads "no adapter" (-1) as the last slot, so the last slot must be empty.
    with engine(enable_lora=True, max_loras=2, max_lora_rank=8) as llm:
        mine = LoRARequest("mine", 1, str(tmp_path))
        outputs = llm.generate(
            [{"prompt_token_ids": case.prompt} for case in cases],
            [case.params() for case in cases],
            lora_request=[mine if worn else None for worn in wears],
            use_tqdm=False,
        )
    texts = [list(output.outputs[0].token_ids) for output in outputs]
    plain, changed = reference.plain(cases), merged.plain(cases)
    assert sum(a != b for a, b in zip(plain, changed, strict=True)) >= 8, "a LoRA that changes nothing tests nothing"
    judges = {
        worn: Judge(source.decoder.model, source.decoder.mask_id)
        for worn, source in zip((True, False), (merged, reference), strict=True)
    }
    sameness = [
        compare(text, changed[i] if wears[i] else plain[i], gap=judges[wears[i]].after(cases[i].prompt))
        for i, text in enumerate(texts)
    ]
    assert Identity.DIFFERENT not in sameness and sameness.count(Identity.TIE) <= 1  # merged weights round differently
    assert len(passes) < max(map(len, texts)), "nothing was drafted"
