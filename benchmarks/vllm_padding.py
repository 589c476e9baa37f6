"""Wider attention heads for the same Llama. vLLM's CPU kernels support head sizes of 32 and more; the embedded draft model's is 24.

Each half of a head is padded with zeros, and the base of the rotary frequencies is raised so that each pair keeps its own
frequency: the pairs of a head of width d turn by theta ** (-2i / d), which equals (theta ** (w / d)) ** (-2i / w). Scores are
divided by the square root of the width, so the queries are scaled to make up for it.
"""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM


def with_wider_heads(model: Path, folder: Path, width: int = 32) -> Path:
    """`model`, if its heads are at least `width` wide; otherwise a copy in `folder` with heads of this width and the same logits."""
    config = json.loads((model / "config.json").read_text())
    old: int = config["head_dim"]
    if old >= width:
        return model
    places = torch.tensor([*range(old // 2), *(width // 2 + i for i in range(old // 2))])

    def widen(weight: Tensor) -> Tensor:  # [heads * old, D] -> [heads * width, D]
        heads = weight.float().reshape(-1, old, weight.shape[1])
        wide = heads.new_zeros(len(heads), width, weight.shape[1])
        wide[:, places] = heads
        return wide.reshape(-1, weight.shape[1])

    shutil.copytree(model, folder)
    weights = {name: weight.float() for name, weight in load_file(model / "model.safetensors").items()}
    for name, weight in weights.items():
        if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight")):
            weights[name] = widen(weight) * ((width / old) ** 0.5 if "q_proj" in name else 1)
        elif name.endswith("o_proj.weight"):
            weights[name] = widen(weight.T).T.contiguous()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    rope = config["rope_parameters"]
    config |= {"head_dim": width, "dtype": "float32"}
    config["rope_parameters"] = rope | {"rope_theta": rope["rope_theta"] ** (width / old)}
    (folder / "config.json").write_text(json.dumps(config))
    _check(model, folder)
    return folder


@torch.inference_mode()
def _check(model: Path, copy: Path) -> None:
    ids = torch.arange(3, 203)[None]
    before, after = (
        AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)(ids).logits for path in (model, copy)
    )
    if (gap := float((before - after).abs().max())) > 1e-3:
        raise RuntimeError(f"{copy} does not compute the same as {model}: logits differ by {gap}")
