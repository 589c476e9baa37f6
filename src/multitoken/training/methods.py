"""The ways to adapt: what trains, which passes lead to the loss, and what is saved."""

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from multitoken.checkpoints.adapter import save_adapter
from multitoken.checkpoints.save import save_checkpoint
from multitoken.config import AdaptConfig
from multitoken.decoding.attention import AttentionRule
from multitoken.decoding.gate import GatedAdapter, adaptable_layers
from multitoken.decoding.records import DecodingError
from multitoken.errors import UsageError
from multitoken.models.loading import Loaded
from multitoken.models.mask_token import MaskToken, add_mask_token, reserve_mask_token
from multitoken.models.mtp_config import MtpConfig

from .head import Head
from .passes import GatedPasses, PackedPasses, Passes

Save = Callable[[MtpConfig, Mapping[str, str]], None]


@dataclass(frozen=True)
class Adaptation:
    """A model made ready: its mask token, the module whose parameters learn, the passes, and how the result is kept."""

    mask: MaskToken
    trained: nn.Module
    passes: Passes
    save: Save


def prepare(loaded: Loaded, config: AdaptConfig, texts: Iterable[str]) -> Adaptation:
    """Give the model a mask token and whatever trains, as `config.method` says."""
    return {"full": _full, "gated": _gated}[config.method](loaded, config, texts)


def _full(loaded: Loaded, config: AdaptConfig, texts: Iterable[str]) -> Adaptation:
    """Every weight trains, as in the paper; the teacher is a frozen copy. The result is an ordinary checkpoint."""
    student = loaded.model
    mask = add_mask_token(student, loaded.tokenizer, texts=texts, seed=config.seed)
    teacher = copy.deepcopy(student).eval().requires_grad_(False)

    def save(mtp: MtpConfig, files: Mapping[str, str]) -> None:
        save_checkpoint(
            student.eval(), loaded.tokenizer, mtp, config.output, overwrite=config.overwrite, extra_files=files
        )

    passes = PackedPasses(Head(student, mask.id), Head(teacher, mask.id), AttentionRule(teacher))
    return Adaptation(mask, student, passes, save)


def _gated(loaded: Loaded, config: AdaptConfig, texts: Iterable[str]) -> Adaptation:
    """A low-rank adapter trains that acts at masks only; the teacher is the model itself. The result is the adapter."""
    model = loaded.model.requires_grad_(False)
    mask, vector = reserve_mask_token(model, loaded.tokenizer, texts=texts, seed=config.seed)
    try:
        layers = adaptable_layers(model, config.layers)
    except DecodingError as error:
        raise UsageError(f"layers: {error}") from error
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        adapter = GatedAdapter(model, mask_id=mask.id, rank=config.rank, layers=layers)
    adapter.mask_vector.data.copy_(vector)
    adapter.attach(model)

    def save(mtp: MtpConfig, files: Mapping[str, str]) -> None:
        save_adapter(
            adapter,
            loaded.tokenizer,
            mtp,
            config.output,
            base=config.model,
            overwrite=config.overwrite,
            extra_files=files,
        )

    return Adaptation(mask, adapter, GatedPasses(Head(model, mask.id), AttentionRule(model)), save)
