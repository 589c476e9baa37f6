"""Load a causal language model. One that would decode wrongly is refused by its config, before any weight is read."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from multitoken.decoding.draft_head import DraftHead
from multitoken.decoding.failures import DecodingError
from multitoken.decoding.gate import GatedAdapter
from multitoken.decoding.head_file import read_head
from multitoken.errors import ModelError, UnsupportedModelError, UsageError

from .gated import fetch_adapter, find_base, read_adapter, read_adapter_config, read_own_adapter, read_uno_settings
from .heads import find_head
from .mask_token import reserve_mask_token
from .mtp_config import MtpConfig
from .placement import Placement, find_device, find_dtype
from .quantize import Quantization
from .reading import choose_attention, locate, read_config, read_tokenizer, read_weights, refuse_unsupported
from .weights import is_of_files, parameter_hash, stored_tensors, weight_files, weight_hash

ATTENTION = ("sdpa", "eager")  # the implementations that accept a block mask


@dataclass(frozen=True)
class Loaded:
    """A model in eval mode and what belongs to it. `mtp` is None for an ordinary model; `name` is never a path; `adapter` is the
    gated adapter that is attached to it, if any; `head` is its draft head, if it has one; `files` hold its weights."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    mtp: MtpConfig | None
    name: str
    files: tuple[Path, ...]
    adapter: GatedAdapter | None = None
    head: DraftHead | None = None
    known_hash: str | None = None
    is_quantized: bool = False

    @cached_property
    def weight_hash(self) -> str:
        """The hash of the files that the weights were read from (`weights.weight_hash`), even if the weights were changed
        since."""
        return self.known_hash or weight_hash(self.files)

    def check_base(self, known: str, wrong: str) -> None:
        """Raises `ModelError` unless the weights have the hash `known`. `wrong` is the message, with {found} for the hash
        found."""
        if self.is_quantized and not is_of_files(known):
            raise ModelError(
                f"{self.name} has the hash of an old version, which cannot be checked with quantized weights; leave quantize out"
            )
        found = self.weight_hash if is_of_files(known) else parameter_hash(self.model)
        if found != known:
            raise ModelError(wrong.format(found=found[:19]))


# An UNO adapter does not say how many tokens it was trained to draft. The threshold ends drafts that it is not sure of.
UNO_K = 16


@dataclass(frozen=True)
class _How:
    """The options of load_causal_lm that apply to reading any model."""

    dtype: torch.dtype | str
    placement: Placement
    trust_remote_code: bool
    attention: str
    quantization: Quantization


def load_causal_lm(
    name_or_path: str | Path,
    *,
    dtype: torch.dtype | str = "auto",
    device: str | torch.device = "auto",
    device_map: str | Mapping[str, Any] | None = None,
    max_memory: Mapping[Any, Any] | None = None,
    offload_folder: str | Path | None = None,
    trust_remote_code: bool = False,
    attn_implementation: str = "sdpa",
    base: str | Path | None = None,
    quantize: str = "none",
    uno: bool = False,
) -> Loaded:
    """Load the model and tokenizer of a folder or of a hub name; for a gated adapter, those of its base with the adapter
    attached.

    base: where the base of an adapter is, if not where the adapter says. quantize: "int8" or "nf4" holds the weights of the
    linear layers in 8 or 4 bits (see `quantize`), those of an adapter's base as well. uno: the folder is an UNO draft adapter,
    which was trained with random tokens at the positions of masks.

    device, dtype: see `placement`. device_map, max_memory, offload_folder: transformers' options for a model that is spread over
    several devices, memory and disk.

    Raises UsageError for an invalid device, type or attention, OutOfMemoryError before loading if the weights do not fit in the
    free memory, UnsupportedModelError for a kind of model that would decode wrongly, and ModelError for a model that is missing,
    incomplete or broken.
    """
    if attn_implementation not in ATTENTION:
        raise UsageError(
            f"attn_implementation is {attn_implementation!r}; expected one of {', '.join(ATTENTION)} "
            "(flash kernels accept no block mask, and flex_attention adds one as numbers)"
        )
    options = {"max_memory": max_memory, "offload_folder": offload_folder and str(offload_folder)}
    options = {name: value for name, value in options.items() if value is not None}
    if options and device_map is None:
        raise UsageError(f"{', '.join(options)} without device_map would do nothing; give device_map='auto'")
    if device_map is not None and str(device) != "auto":
        raise UsageError(f"device is {str(device)!r} and device_map {device_map!r}; give one of them")
    placement = Placement(find_device(device), device_map, options)
    find_dtype(dtype, placement.device)  # an invalid type is reported before anything is read
    how = _How(dtype, placement, trust_remote_code, attn_implementation, Quantization(quantize))
    if (folder := fetch_adapter(name_or_path)) is not None:
        name = folder.resolve().name if folder == Path(name_or_path).expanduser() else str(name_or_path)
        return _load_gated(folder, name, base, how, uno=uno)
    if uno:
        where = Path(name_or_path).expanduser()
        found = (
            "has no adapter_config.json"
            if where.exists()
            else "is no folder, and no adapter of that name was found on the Hub"
        )
        raise UsageError(f"{name_or_path} {found}; expected an UNO draft adapter: its folder or Hub name")
    if base is not None:
        raise UsageError(f"base is {str(base)!r}, but {name_or_path} is not an adapter; leave base out")
    loaded, source = _load_whole(name_or_path, how)
    mtp, adapter = loaded.mtp, None
    if mtp is not None and mtp.method == "gated":
        loaded.check_base(
            mtp.base_hash,
            f"{loaded.name} holds an adapter that was made for the weights {mtp.base_hash[:19]}, but its own are "
            "{found}; export the checkpoint again",
        )
        adapter = read_own_adapter(loaded.model, source, mtp)
    if adapter is not None:
        adapter.attach_for_decoding(loaded.model)
    return replace(loaded, adapter=adapter, head=_read_head(loaded.model, source, mtp))


def load_config(name_or_path: str | Path, *, trust_remote_code: bool = False) -> tuple[PreTrainedConfig, str]:
    """The config of a folder or hub name, which needs no weights, and the name for messages. Raises as `load_causal_lm` does."""
    source, name = locate(name_or_path, weights=False)
    config = read_config(source, trust_remote_code)
    refuse_unsupported(config, name)
    return config, name


def _load_whole(name_or_path: str | Path, how: _How, *, is_base: bool = False) -> tuple[Loaded, str]:
    """A model from its own folder, without an adapter attached, and its source. is_base: the hash of its weights will be
    needed."""
    source, name = locate(name_or_path)
    config = read_config(source, how.trust_remote_code)
    refuse_unsupported(config, name)
    mtp = MtpConfig.from_hf(config)
    tokenizer = read_tokenizer(source, how.trust_remote_code)
    if mtp is not None and (found := tokenizer.convert_tokens_to_ids(mtp.mask_token)) != mtp.mask_token_id:
        raise ModelError(
            f"{name}: the tokenizer gives {mtp.mask_token!r} the id {found}, config.json: mtp.mask_token_id is "
            f"{mtp.mask_token_id}; the tokenizer files are not those the checkpoint was saved with"
        )
    attention = choose_attention(config, source, how.attention)
    files = tuple(weight_files(source))
    tensors = stored_tensors(files)
    dtype = find_dtype(how.dtype, how.placement.device, tensors, name)
    how.placement.check_room(tensors, dtype, name, how.quantization.spared(config, dtype, how.trust_remote_code))
    packing = how.quantization.for_transformers(dtype, how.placement.device)
    with ThreadPoolExecutor(1) as beside:  # the files are hashed while they are read
        asked = is_base or (mtp is not None and mtp.method == "gated")
        hashed = beside.submit(weight_hash, files) if asked else None
        model = read_weights(
            source, config, dtype, how.trust_remote_code, attention, packing | how.placement.for_transformers()
        )
    how.quantization.finish(model)
    known = hashed and hashed.result()
    return Loaded(model, tokenizer, mtp, name, files, known_hash=known, is_quantized=bool(how.quantization)), source


def _load_gated(folder: Path, name: str, base: str | Path | None, how: _How, *, uno: bool) -> Loaded:
    """The base with the adapter attached, after a check that its weights are those that the adapter was made for. An UNO adapter
    does not say which weights it was made for, so its base is not checked."""
    settings, mtp = (read_uno_settings(folder), None) if uno else read_adapter_config(folder)
    source = base or find_base(folder, settings)
    made_for = mtp.base_name if mtp is not None else source
    own = f"{source} holds an adapter of its own; load it as it is, or give the model it was made from"
    if fetch_adapter(source) is not None:
        raise ModelError(own)
    try:
        loaded, _ = _load_whole(source, how, is_base=True)
    except UnsupportedModelError:
        raise
    except ModelError as error:
        raise ModelError(
            f"{folder} is an adapter of {made_for}: {error}. Give its folder or hub name as base (--base)"
        ) from error
    if loaded.mtp is not None and loaded.mtp.method == "gated":
        raise ModelError(own)
    if mtp is None:
        tokenizer = loaded.tokenizer
        mask, _ = reserve_mask_token(loaded.model, tokenizer)
        mtp = MtpConfig(
            k=UNO_K,
            mask_token_id=mask.id,
            mask_token=str(tokenizer.convert_ids_to_tokens(mask.id)),
            method="gated",
            base_name=loaded.name,
            base_hash=loaded.weight_hash,
        )
    else:
        loaded.check_base(
            mtp.base_hash,
            f"{folder} was made for {mtp.base_name} with the weights {mtp.base_hash[:19]}, but those of {source} are "
            "{found}; give the model it was made from as base (--base)",
        )
        tokenizer = read_tokenizer(str(folder), trust_remote_code=False)
        if tokenizer.convert_tokens_to_ids(mtp.mask_token) != mtp.mask_token_id:
            raise ModelError(f"{folder}: the tokenizer does not give {mtp.mask_token!r} the id {mtp.mask_token_id}")
    adapter = read_adapter(loaded.model, folder, mtp)
    adapter.attach_for_decoding(loaded.model)
    head = _read_head(loaded.model, str(folder), mtp)
    return replace(loaded, tokenizer=tokenizer, mtp=mtp, name=name, adapter=adapter, head=head)


def _read_head(model: PreTrainedModel, source: str, mtp: MtpConfig | None) -> DraftHead | None:
    """The draft head of a folder or a hub name, if the `mtp` block says that there is one. Raises `ModelError`."""
    if mtp is None or not mtp.draft_head:
        return None
    file = find_head(source, mtp.draft_head)
    try:
        return read_head(model, file, mtp.draft_head)
    except DecodingError as error:
        raise ModelError(str(error)) from error
