"""Save a gated adapter as a small folder, completely or not at all. (`models/gated.py` reads and describes the format.)"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerBase

from multitoken.decoding.draft_head import DraftHead
from multitoken.decoding.gate import GatedAdapter
from multitoken.decoding.gate_file import CONFIG, WEIGHTS, peft_settings, to_peft
from multitoken.models.mtp_config import MtpConfig

from .atomic import atomic_folder, write_json, write_text
from .provenance import provenance
from .save import write_decoding, write_head


def save_adapter(
    adapter: GatedAdapter,
    tokenizer: PreTrainedTokenizerBase,
    mtp: MtpConfig,
    output: str | Path,
    *,
    base: str,
    overwrite: bool = False,
    dtype: torch.dtype = torch.float32,
    head: DraftHead | None = None,
    extra_files: Mapping[str, str] | None = None,
    decoding: Mapping[str, Any] | None = None,
) -> None:
    """`base` is a hub name or a folder; a folder is stored relative to `output`, so that both can be moved together. `dtype` is
    the type in the file; adapters compute in float32. `decoding`: the default policy and its options (policy, threshold).

    Raises OutputError where `output` cannot be written (see `atomic_folder`).
    """
    place = Path(base).expanduser()
    located = os.path.relpath(place.resolve(), Path(output).resolve()) if place.is_dir() else base
    with atomic_folder(output, overwrite=overwrite) as folder:
        save_file(to_peft(adapter, dtype), folder / WEIGHTS, metadata={"format": "pt"})
        write_json(folder / CONFIG, peft_settings(adapter, located) | {"mtp": mtp.to_dict()})
        write_head(head, folder)
        write_decoding(decoding, folder)
        tokenizer.save_pretrained(folder)
        write_json(folder / "provenance.json", provenance(mtp=mtp.to_dict()))
        for name, text in (extra_files or {}).items():
            write_text(folder / name, text)
