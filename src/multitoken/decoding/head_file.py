"""A draft head's file, `mtp_head/draft_head.safetensors`, next to the weights or the adapter that it was trained with.

It has its own folder, because vLLM reads every safetensors file next to `config.json` as part of the model.
"""

from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_utils import load_state_dict

from .draft_head import VERSION, DraftHead
from .failures import DecodingError

HEAD_WEIGHTS = "mtp_head/draft_head.safetensors"


def check_version(version: int) -> None:
    """Raises `DecodingError` for a head whose formula has another version."""
    if version != VERSION:
        raise DecodingError(
            f"the draft head has version {version}; this multitoken reads version {VERSION}: "
            "upgrade multitoken (pip install -U multitoken), or adapt the model again"
        )


def read_head(model: PreTrainedModel, path: str | Path, version: int) -> DraftHead:
    """The head in this file, for `model`. Raises `DecodingError` if it does not fit."""
    check_version(version)
    hidden = int(model.config.get_text_config().hidden_size)
    try:
        state = load_state_dict(str(path))
    except Exception as error:  # OSError, or safetensors' own exception
        raise DecodingError(f"cannot read {path}: {error}") from error
    return head_of(state, hidden, str(path)).to(model.device).eval().requires_grad_(False)


def head_of(state: dict[str, Tensor], hidden: int, path: str) -> DraftHead:
    """The head with these tensors, for a model of this hidden size. Raises `DecodingError` if they do not fit."""
    up = state.get("up")
    if up is None or up.ndim != 2:
        raise DecodingError(f"{path} is not a draft head: it has no matrix 'up'")
    if up.shape[0] != hidden:
        raise DecodingError(
            f"{path} was trained for a hidden size of {up.shape[0]}, but the model's is {hidden}; use the model that "
            "it was trained for"
        )
    head = DraftHead(hidden, int(up.shape[1]))
    try:
        head.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    except RuntimeError as error:
        raise DecodingError(f"{path} is not a draft head: {error}") from error
    return head


def head_state(head: DraftHead) -> dict[str, Tensor]:
    """The tensors that are written to the file."""
    return {name: tensor.detach().to(torch.float32).cpu().contiguous() for name, tensor in head.state_dict().items()}
