"""Copy a checkpoint's weight files: byte for byte, or each tensor in another type. Names, shards and tied weights stay the
same."""

import json
import shutil
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

from multitoken.models.weights import weight_files

from .atomic import write_json


def copy_weights(source: Path, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Copy the files that transformers reads weights from, one after the other. dtype: the type of floating-point tensors in the
    copy; None: unchanged. Raises `ModelError` if there are no weight files."""
    index = source / SAFE_WEIGHTS_INDEX_NAME
    size = 0
    for file in weight_files(str(source)):
        if dtype is None:
            shutil.copyfile(file, folder / file.name)
        else:
            size += _cast(file, folder / file.name, dtype)
    if not index.is_file():
        return
    if dtype is None:
        shutil.copyfile(index, folder / index.name)
        return
    content = json.loads(index.read_text(encoding="utf-8"))
    write_json(folder / index.name, content | {"metadata": (content.get("metadata") or {}) | {"total_size": size}})


def _cast(file: Path, to: Path, dtype: torch.dtype) -> int:
    """Write the file in another type. Returns the size of its tensors in bytes."""
    with safe_open(file, framework="pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        metadata = opened.metadata() or {}
    cast = {name: t.to(dtype) if t.is_floating_point() else t for name, t in tensors.items()}
    save_file(cast, to, metadata={"format": "pt"} | metadata)
    return sum(t.numel() * t.element_size() for t in cast.values())
