"""The default policy of an adapted checkpoint: `mtp` in its `generation_config.json`."""

import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel
from transformers.utils import GENERATION_CONFIG_NAME

from multitoken.decoding.policies import POLICY_OPTIONS, Exact, Policy, layered_policy
from multitoken.errors import ModelError


def stored_policy(hf: PreTrainedModel) -> Policy:
    """The policy in the loaded model's generation config, otherwise Exact."""
    return _policy_of(getattr(hf.generation_config, "mtp", None))


def policy_in(folder: str | Path) -> Policy:
    """The same for a checkpoint's folder that is not loaded. Raises `ModelError` for a broken file."""
    return _policy_of(_read(Path(folder) / GENERATION_CONFIG_NAME))


def _policy_of(block: dict[str, Any] | None) -> Policy:
    says = block or {}
    return layered_policy({"policy": Exact.name}, {name: says[name] for name in POLICY_OPTIONS if name in says})


def take_over(hf: PreTrainedModel, folder: Path) -> None:
    """Copy the default policy in an adapter's folder, if there is one, to its base model. Raises `ModelError` for a broken
    file."""
    says = folder / GENERATION_CONFIG_NAME
    if not says.is_file() or hf.generation_config is None:
        return
    generation: Any = hf.generation_config
    generation.mtp = _read(says)


def _read(says: Path) -> dict[str, Any] | None:
    """The block `mtp` of a generation config; None if there is no file, or no block in it."""
    if not says.is_file():
        return None
    try:
        return json.loads(says.read_text(encoding="utf-8")).get("mtp")
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(f"{says}: cannot be read: {error}; expected an object with the key mtp") from error
