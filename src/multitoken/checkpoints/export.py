"""Export an adapted checkpoint as a folder that is ready for the Hub (`docs/export.md` describes it).

Weights are copied, not saved again (`weight_copy`).
"""

import dataclasses
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.utils.hub import cached_file

import multitoken.decoding
from multitoken.decoding.exported import ADAPTER_FOLDER
from multitoken.decoding.gate_file import CONFIG, WEIGHTS
from multitoken.decoding.policies import Policy, as_options, with_trained_k
from multitoken.errors import ModelError, UsageError
from multitoken.models.gated import find_base, is_adapter, is_hub_name, read_adapter_config
from multitoken.models.loading import Loaded, load_causal_lm
from multitoken.models.mtp_config import MtpConfig
from multitoken.models.placement import DTYPES
from multitoken.models.stored_policy import stored_policy

from .atomic import atomic_folder, check_output, write_json, write_text
from .card import CODE_FOLDER, EVALUATION_FOLDER, Facts, license_of, model_card
from .hub import check_push, push
from .measured import PICTURE, RESULTS, Measured, read_evaluation
from .provenance import provenance
from .save import write_decoding, write_head
from .weight_copy import copy_weights

REQUIREMENTS = "transformers>=5.19\n"  # transformers checks this before it runs the code, and names what is missing
_LEGAL = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")


@dataclass(frozen=True)
class _Source:
    """Where the parts of a checkpoint are. `adapter` is None for a checkpoint whose own weights were adapted."""

    folder: Path
    weights: Path
    adapter: Path | None
    base: str | None  # hub name


def export(
    source: str | Path,
    output: str | Path,
    *,
    policy: Policy | None = None,
    base: str | Path | None = None,
    reference: bool = False,
    evaluation: str | Path | None = None,
    dtype: str | None = None,
    overwrite: bool = False,
    push_to_hub: str | None = None,
) -> Path:
    """Export `source`, a folder that `multitoken adapt` made, to the folder `output`, and upload that to the Hub if
    `push_to_hub` names a repository. Returns `output`.

    policy: the default policy of the exported checkpoint (that of `source`, if not given). base: where the model of a gated
    adapter is, if not where the adapter says. reference: export a gated adapter without its base, which is only named.
    evaluation: a folder that `multitoken evaluate` wrote, for the model card. dtype: store the weights in this type.

    Raises UsageError, DataError and OutputError for invalid options, before any work, and ModelError for a checkpoint that is not
    adapted, is incomplete, or does not fit its base.
    """
    source, output = Path(source).expanduser(), Path(output).expanduser()
    mtp = _read_mtp(source)
    _check_options(mtp, dtype, policy, reference)
    if policy is not None:
        with_trained_k(policy, mtp.k)  # raises for a k that is too large
    measured = read_evaluation(evaluation) if evaluation is not None else None
    check_output(output, overwrite=overwrite)
    if push_to_hub is not None:
        check_push(push_to_hub)
    # A checkpoint that cannot be loaded is not published.
    loaded = load_causal_lm(source, base=base, dtype="bfloat16", device="cpu")
    policy = policy or stored_policy(loaded.model)
    place = _find(source, mtp, base)
    if reference and place.base is None:
        raise UsageError(
            f"{source} is an adapter of {mtp.base_name!r}, which is not a name on the Hub; --reference needs one: give it as "
            "base (--base), or leave --reference out to export base and adapter together"
        )
    mtp = dataclasses.replace(mtp, base_name=place.base or mtp.base_name)
    decoding = {name: value for name, value in as_options(policy).items() if value is not None}
    with atomic_folder(output, overwrite=overwrite) as folder:
        if reference:
            _write_adapter(place, mtp, folder)
            write_decoding(decoding, folder)
        else:
            _write_model(loaded, place, mtp, decoding, dtype, folder)
        write_head(loaded.head, folder)
        loaded.tokenizer.save_pretrained(folder)
        record = provenance(mtp=mtp.to_dict(), adapted=_read_json(source / "provenance.json"))
        write_json(folder / "provenance.json", record)
        if (source / "adapt.json").is_file():
            shutil.copyfile(source / "adapt.json", folder / "adapt.json")
        if measured is not None:
            _copy_evaluation(measured, folder)
        facts = Facts(
            name=push_to_hub or output.resolve().name,
            mtp=mtp,
            decoding=decoding,
            reference=reference,
            is_chat=bool(loaded.tokenizer.chat_template),
            base=place.base,
            license=license_of(place.weights, place.base),
            adapted=record["adapted"],
            exported=record,
            measured=measured,
        )
        write_text(folder / "README.md", model_card(facts))
    if push_to_hub is not None:
        push(output, push_to_hub)
    return output


def _read_mtp(source: Path) -> MtpConfig:
    """The `mtp` block of a checkpoint, read without its weights."""
    if is_adapter(source):
        return read_adapter_config(source)[1]
    if not (source / "config.json").is_file():
        raise ModelError(f"{source} is not a checkpoint; expected a folder that `multitoken adapt` wrote")
    block = _read_json(source / "config.json").get("mtp")
    if not isinstance(block, dict):
        raise ModelError(
            f"{source} was not adapted (its config.json has no mtp block); adapt it first: multitoken adapt {source} ..."
        )
    return MtpConfig.from_block(block, f"{source}/config.json")


def _check_options(mtp: MtpConfig, dtype: str | None, policy: Policy | None, reference: bool) -> None:
    if dtype is not None and dtype not in DTYPES:
        raise UsageError(f"dtype is {dtype!r}; expected one of {', '.join(DTYPES)}")
    if dtype == "float16" and mtp.method == "gated":
        raise UsageError(
            "dtype float16 would change the weights that the adapter was made for; use bfloat16 or float32"
        )
    if not reference:
        return
    if mtp.method != "gated":
        raise UsageError(
            f"--reference is for gated adapters; this checkpoint's own weights were adapted ({mtp.method})"
        )
    if dtype is not None or policy is not None:
        option = f"dtype {dtype!r}" if dtype is not None else f"policy {policy!r}"
        raise UsageError(f"{option} belongs to a model, and --reference writes only an adapter; leave one of them out")


def _find(source: Path, mtp: MtpConfig, base: str | Path | None) -> _Source:
    if not is_adapter(source):
        adapter = source / ADAPTER_FOLDER if mtp.method == "gated" else None
        return _Source(source, source, adapter, mtp.base_name if "/" in mtp.base_name else None)
    name = str(base) if base is not None else find_base(source, read_adapter_config(source)[0])
    if is_hub_name(name):
        config = cached_file(name, "config.json")
        assert config is not None, "it was loaded from there"
        return _Source(source, Path(config).parent, source, name)
    return _Source(source, Path(name).expanduser(), source, mtp.base_name if "/" in mtp.base_name else None)


def _write_model(
    loaded: Loaded, place: _Source, mtp: MtpConfig, decoding: dict[str, Any], dtype: str | None, folder: Path
) -> None:
    """Write a model that plain transformers can load, and the files with which it writes several tokens per step."""
    copy_weights(place.weights, folder, DTYPES[dtype] if dtype is not None else None)
    config = _read_json(place.weights / "config.json") | {"mtp": mtp.to_dict()}
    if place.adapter is None:
        # vLLM's own parallel drafter (PARD) reads the mask token's id here. It does not support weights that act at masks only.
        config["pard_token"] = mtp.mask_token_id
    # It names code files that are not copied. transformers has the class, or the checkpoint would not have loaded.
    config.pop("auto_map", None)
    if dtype is not None:
        config.pop("torch_dtype", None)
        config["dtype"] = dtype
    write_json(folder / "config.json", config)
    assert loaded.model.generation_config is not None
    generation = _read_json(place.weights / "generation_config.json") or json.loads(
        loaded.model.generation_config.to_json_string()
    )
    generation.pop("_from_model_config", None)  # with this key, transformers drops the keys that it does not know
    write_json(folder / "generation_config.json", generation | {"mtp": decoding})
    if place.adapter is not None:
        _write_adapter(dataclasses.replace(place, folder=place.adapter), mtp, folder / ADAPTER_FOLDER)
    for file in (file for pattern in _LEGAL for file in sorted(place.weights.glob(pattern)) if file.is_file()):
        shutil.copyfile(file, folder / file.name)
    _copy_code(folder / CODE_FOLDER)


def _write_adapter(place: _Source, mtp: MtpConfig, folder: Path) -> None:
    assert place.adapter is not None
    folder.mkdir(exist_ok=True)
    settings = _read_json(place.adapter / CONFIG) | {"base_model_name_or_path": mtp.base_name, "mtp": mtp.to_dict()}
    write_json(folder / CONFIG, settings)
    shutil.copyfile(place.adapter / WEIGHTS, folder / WEIGHTS)


def _copy_code(folder: Path) -> None:
    """Copy `decoding/` byte for byte."""
    folder.mkdir()
    for file in sorted(Path(multitoken.decoding.__file__).parent.glob("*.py")):
        shutil.copyfile(file, folder / file.name)
    write_text(folder / "requirements.txt", REQUIREMENTS)


def _copy_evaluation(measured: Measured, folder: Path) -> None:
    (folder / EVALUATION_FOLDER).mkdir()
    for name in (RESULTS, PICTURE):
        shutil.copyfile(measured.folder / name, folder / EVALUATION_FOLDER / name)


def _read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; {} if there is no such file."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise ModelError(f"{path}: expected a JSON object, found {type(found).__name__}")
    return found
