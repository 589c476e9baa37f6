"""The decoder of an exported checkpoint that plain transformers has loaded.

The gate and the draft head are read from files next to the weights.
"""

import re
from pathlib import Path

from transformers import PreTrainedModel
from transformers.utils.hub import cached_file

from .failures import DecodingError
from .gate_file import CONFIG, WEIGHTS, read_gate
from .head_file import HEAD_WEIGHTS, read_head
from .loop import Decoder

ADAPTER_FOLDER = "mtp_adapter"  # in a checkpoint that holds both its base and its gate


def decoder_of(model: PreTrainedModel) -> Decoder:
    """The decoder of an adapted model, as returned by `from_pretrained`. Its gate, if it has one, is attached."""
    kept: Decoder | None = model.__dict__.get("_mtp_decoder")
    if kept is not None and kept.model is model:
        return kept
    facts = getattr(model.config, "mtp", None)
    if not isinstance(facts, dict) or not {"k", "mask_token_id"} <= facts.keys():
        raise DecodingError(
            f"config.json of {model.config.name_or_path or 'this model'} has no mtp block: it was not adapted to write "
            "several tokens per step; adapt it with multitoken, or use its ordinary generate"
        )
    if facts.get("method") == "gated":
        config, weights = (_file(model, f"{ADAPTER_FOLDER}/{name}") for name in (CONFIG, WEIGHTS))
        read_gate(model, config, weights, facts["mask_token_id"]).attach_for_decoding(model)
    version = facts.get("draft_head", 0)
    head = read_head(model, _file(model, HEAD_WEIGHTS), version) if version else None
    decoder = Decoder(model, mask_id=facts["mask_token_id"], trained_k=facts["k"], head=head)
    model.__dict__["_mtp_decoder"] = decoder
    return decoder


def _file(model: PreTrainedModel, name: str) -> str:
    """The path of a file of the checkpoint that the model was loaded from, which may be a folder or on the Hub."""
    source = str(model.config.name_or_path)
    found = cached_file(source, name, revision=_revision(source))
    assert found is not None, "cached_file raises where there is none"
    return found


def _revision(source: str) -> str | None:
    """The commit of the Hub repository `source` that this Python file came from. A model does not know its own commit.

    None for a folder, and if this file belongs to another repository.
    """
    owner, name, commit = ("", "", "", *Path(__file__).parts)[-5:-2]
    ours = [part.replace(".", "_dot_").replace("-", "_hyphen_") for part in source.split("/")]
    is_ours = [part.removeprefix("_") for part in ours] == [part.removeprefix("_") for part in (owner, name)]
    return commit if is_ours and re.fullmatch("[0-9a-f]{40}", commit) else None
