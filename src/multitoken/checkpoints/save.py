"""Save a model that has a mask token as an ordinary Hugging Face folder, completely or not at all."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import CONFIG_NAME, GENERATION_CONFIG_NAME

from multitoken.decoding.draft_head import DraftHead
from multitoken.decoding.gate_file import CONFIG as ADAPTER_CONFIG
from multitoken.decoding.head_file import HEAD_WEIGHTS, head_state
from multitoken.errors import ModelError, OutputError
from multitoken.models.mtp_config import MtpConfig

from .atomic import atomic_folder, write_json, write_text
from .provenance import provenance


def save_checkpoint(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    mtp: MtpConfig,
    output: str | Path,
    *,
    overwrite: bool = False,
    dtype: torch.dtype | None = None,
    extra_files: Mapping[str, str] | None = None,
    max_shard_size: str = "5GB",
    head: DraftHead | None = None,
    decoding: Mapping[str, Any] | None = None,
) -> None:
    """Write safetensors, `config.json` with the `mtp` block, generation config, tokenizer and `provenance.json`.

    `dtype` casts the saved weights only: the model in memory keeps its own type, and only `config.mtp` is added to it.
    `extra_files` maps names in the folder to their text. `decoding`: the default policy and its options (policy, threshold).

    Raises OutputError if `output` cannot be written (see `atomic_folder`), and ModelError where `mtp` and the
    tokenizer disagree about the mask token.
    """
    found = tokenizer.convert_tokens_to_ids(mtp.mask_token)
    if found != mtp.mask_token_id:
        raise ModelError(
            f"mtp.mask_token_id is {mtp.mask_token_id}, but the tokenizer gives {mtp.mask_token!r} the id {found}; "
            "save the tokenizer that add_mask_token changed"
        )
    for name in extra_files or {}:
        place = PurePosixPath(name)
        if place.is_absolute() or ".." in place.parts:
            raise OutputError(f"extra file {name!r} is outside the folder; expected a relative name")
    model.config.mtp = mtp.to_dict()
    saved_dtype = dtype or model.dtype
    with atomic_folder(output, overwrite=overwrite) as folder:
        with own_settings_kept(model):
            model.save_pretrained(folder, state_dict=_cast(model, dtype), max_shard_size=max_shard_size)
        if model.can_generate():
            generation = json.loads(model.generation_config.to_json_string())
            write_decoding(decoding, folder, generation)
        tokenizer.save_pretrained(folder)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config["dtype"] = str(saved_dtype).removeprefix("torch.")
        write_json(folder / "config.json", config)
        write_head(head, folder)
        write_json(folder / "provenance.json", provenance(mtp=mtp.to_dict()))
        for name, text in (extra_files or {}).items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            write_text(folder / name, text)


def write_decoding(
    decoding: Mapping[str, Any] | None, folder: Path, generation: Mapping[str, Any] | None = None
) -> None:
    """Write `generation_config.json`, with the checkpoint's default policy and its options as `mtp`. Writes no file if there is
    nothing to store."""
    config = dict(generation or {})
    if decoding:
        config.pop("_from_model_config", None)  # with this key, transformers drops the keys that it does not know
        config["mtp"] = dict(decoding)
    if config:
        write_json(folder / GENERATION_CONFIG_NAME, config)


def store_decoding(folder: str | Path, decoding: Mapping[str, Any]) -> None:
    """Set the default policy and options of a saved checkpoint. All other entries of its `generation_config.json` stay.

    Raises `OutputError` for a folder that is not a checkpoint or cannot be written.
    """
    folder = Path(folder)
    if not any((folder / name).is_file() for name in (CONFIG_NAME, ADAPTER_CONFIG)):
        raise OutputError(f"{folder} holds no model; expected a folder with {CONFIG_NAME} or {ADAPTER_CONFIG}")
    place = folder / GENERATION_CONFIG_NAME
    says = json.loads(place.read_text(encoding="utf-8")) if place.is_file() else {}
    write_decoding(decoding, folder, says)


def write_head(head: DraftHead | None, folder: Path) -> None:
    """Write the draft head, if there is one; its version is in the `mtp` block."""
    if head is not None:
        (folder / HEAD_WEIGHTS).parent.mkdir(exist_ok=True)
        save_file(head_state(head), folder / HEAD_WEIGHTS, metadata={"format": "pt"})


@contextmanager
def own_settings_kept(model: PreTrainedModel) -> Iterator[None]:
    """Undo what `save_pretrained` writes into the model, and keep it from validating the generation config.

    Many published models have a generation config that transformers reads but refuses to write (a temperature without
    sampling): hours of training would end in that error. It is written verbatim instead.
    """
    dtype, architectures, generation = model.config.dtype, model.config.architectures, model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.config.dtype, model.config.architectures, model.generation_config = dtype, architectures, generation


def _cast(model: PreTrainedModel, dtype: torch.dtype | None) -> dict[str, torch.Tensor]:
    """The state dict with its floating-point parameters in `dtype`. Tied parameters stay one tensor, buffers stay as they are."""
    state = model.state_dict()
    if dtype is None:
        return state
    cast: dict[int, torch.Tensor] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name in state and parameter.is_floating_point():
            # save_pretrained recognises tied weights by their memory: if a weight were cast twice, it would be saved twice.
            if id(parameter) not in cast:
                cast[id(parameter)] = parameter.detach().to(dtype)
            state[name] = cast[id(parameter)]
    return state
