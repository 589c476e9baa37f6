"""The methods of adapting a model: what trains, which passes lead to the loss, and what is saved."""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from multitoken.checkpoints.adapter import save_adapter
from multitoken.checkpoints.save import save_checkpoint
from multitoken.config import AdaptConfig
from multitoken.decoding.adaptable import is_linear
from multitoken.decoding.attention import AttentionRule
from multitoken.decoding.draft_head import DraftHead
from multitoken.decoding.failures import DecodingError
from multitoken.decoding.gate import GatedAdapter, adaptable_layers
from multitoken.decoding.gate_file import WEIGHTS, from_peft
from multitoken.decoding.head_file import HEAD_WEIGHTS
from multitoken.decoding.mixers import Mixers
from multitoken.errors import UsageError
from multitoken.models.loading import Loaded
from multitoken.models.mask_token import MaskToken, add_mask_token, reserve_mask_token
from multitoken.models.mtp_config import MtpConfig

from .activations import checkpointed
from .directions import Steering, steering
from .encoding import Sample
from .head import Head
from .lora import only_trained, with_lora
from .passes import GatedPasses, PackedPasses, Passes

Save = Callable[[MtpConfig, Mapping[str, Any], Mapping[str, str]], None]


@dataclass(frozen=True)
class Adaptation:
    """A prepared model: its mask token, the module whose parameters train, the passes, and how the result is saved.

    factors: by layer, the trained weights that multiply the layer's inputs (a method, because splitting the model replaces them).
    embedding: the model whose embedding trains in the mask token's row alone, if there is one.
    """

    mask: MaskToken
    trained: nn.Module
    passes: Passes
    save: Save
    head: DraftHead | None
    factors: Callable[[], dict[str, nn.Parameter]] = dict
    embedding: PreTrainedModel | None = None

    def steering(self, samples: Sequence[Sample], free: float) -> Steering | None:
        """What keeps the original model's directions; None if every direction is free."""
        factors = self.factors()
        if free == 1 or not factors:
            return None
        found = steering(self.passes.teacher, factors, samples, free)
        if self.embedding is not None:
            found.only_row(self.embedding.get_input_embeddings().weight, self.mask.id)  # pyright: ignore[reportArgumentType]
        return found


def prepare(loaded: Loaded, config: AdaptConfig, texts: Iterable[str]) -> Adaptation:
    """Give the model a mask token and the parameters that train, according to `config.method`."""
    return {"full": _full, "lora": _lora, "gated": _gated}[config.method](loaded, config, texts)


def _full(loaded: Loaded, config: AdaptConfig, texts: Iterable[str]) -> Adaptation:
    """Every weight trains, as in the paper, or every matrix but those of the vocabulary, where directions are not all free. The
    teacher is a frozen copy. The result is an ordinary checkpoint."""
    student = loaded.model
    mask = add_mask_token(student, loaded.tokenizer, texts=texts, seed=config.seed)
    teacher = copy.deepcopy(student).eval().requires_grad_(False)
    steered = config.free_directions < 1
    layers = [name for name in _layers(student, config) if is_linear(student.get_submodule(name))] if steered else []
    if steered:
        _freeze_what_real_tokens_need(student)
    passes = PackedPasses(_student(student, mask, config), Head(teacher, mask.id), AttentionRule(teacher))
    head = _draft_head(student, config)
    save = partial(_save_whole, student, loaded, config, head)
    return Adaptation(
        mask,
        _beside(student, head),
        passes,
        save,
        head,
        factors=lambda: {name: _weight(student.get_submodule(name)) for name in layers},
        embedding=student if steered else None,
    )


def _freeze_what_real_tokens_need(model: PreTrainedModel) -> None:
    """Norms, biases, the output matrix and embeddings of positions, which act on real tokens as on masks. Of the input embedding,
    the optimizer moves only the mask token's row (`Steering.only_row`)."""
    output = model.get_output_embeddings()
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if parameter.ndim < 2 or module is output or isinstance(module, nn.Embedding):
                parameter.requires_grad_(False)
    model.get_input_embeddings().requires_grad_(True)  # it may be the output matrix as well


def _weight(module: Any) -> nn.Parameter:
    return module.weight


def _lora(loaded: Loaded, config: AdaptConfig, texts: Iterable[str]) -> Adaptation:
    """A low-rank adapter (PEFT) trains. It acts at every position and is merged into the weights at the end. The teacher is
    the model with the adapter switched off. The result is an ordinary checkpoint."""
    model = loaded.model.requires_grad_(False)
    mask = add_mask_token(model, loaded.tokenizer, texts=texts, seed=config.seed)
    rule = AttentionRule(model)
    layers = _layers(model, config)
    row = model.get_input_embeddings().weight[mask.id]  # pyright: ignore[reportIndexIssue]
    vector = _adapter(model, mask.id, 1, [], config.seed, row)  # without layers: only the mask's own vector
    head = _draft_head(model, config)
    linear = [name for name in layers if is_linear(model.get_submodule(name))]
    adapted = with_lora(model, layers, rank=config.rank, seed=config.seed)

    def save(mtp: MtpConfig, decoding: Mapping[str, Any], files: Mapping[str, str]) -> None:
        whole = adapted.merge_and_unload()
        assert vector.mask_vector is not None
        whole.get_input_embeddings().weight.data[mask.id] = vector.mask_vector.detach()
        _save_whole(whole, loaded, config, head, mtp, decoding, files)

    student, teacher = _student(model, mask, config), Head(model, mask.id, under=adapted.disable_adapter)
    trained = _beside(only_trained(model, vector), head)
    return Adaptation(
        mask,
        trained,
        PackedPasses(student, teacher, rule),
        save,
        head,
        factors=lambda: {name: _weight(model.get_submodule(f"{name}.lora_A.default")) for name in linear},
    )


def _gated(loaded: Loaded, config: AdaptConfig, texts: Iterable[str]) -> Adaptation:
    """A low-rank adapter trains that acts at masks only. The teacher is the model itself. The result is the adapter."""
    model = loaded.model.requires_grad_(False)
    mask, row = reserve_mask_token(model, loaded.tokenizer, texts=texts, seed=config.seed)
    layers = _layers(model, config)
    noise = config.masks == "noise"
    adapter = _adapter(model, mask.id, config.rank, layers, config.seed, None if noise else row)
    head = _draft_head(model, config)
    if config.start_from is not None:
        _begin_with(adapter, head, Path(config.start_from))

    def save(mtp: MtpConfig, decoding: Mapping[str, Any], files: Mapping[str, str]) -> None:
        save_adapter(
            adapter,
            loaded.tokenizer,
            mtp,
            config.output,
            base=config.model,
            overwrite=config.overwrite,
            extra_files=files,
            head=head,
            decoding=decoding,
        )

    passes = GatedPasses(Head(model, mask.id), AttentionRule(model), noise=noise)
    return Adaptation(mask, _beside(adapter, head), passes, save, head)


def _begin_with(adapter: GatedAdapter, head: DraftHead | None, folder: Path) -> None:
    """Start from the weights of a trained adapter, and of its draft head where both have one. Raises `UsageError` where
    they do not fit."""
    try:
        adapter.load_state_dict(_grown(from_peft(load_file(folder / WEIGHTS), adapter.names), adapter.state_dict()))
        if head is not None and (folder / HEAD_WEIGHTS).exists():
            head.load_state_dict(load_file(folder / HEAD_WEIGHTS))
    except (OSError, KeyError, RuntimeError, SafetensorError) as error:
        with_head = f", head_rank {head.rank}" if head is not None else ""
        raise UsageError(
            f"start_from is {folder}, which does not fit rank {adapter.rank}{with_head} and these layers: {error}"
        ) from error


def _grown(given: dict[str, Tensor], untrained: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of an adapter of smaller rank, with the missing directions added untrained. Those add nothing yet, so the
    adapter still does what it did."""
    for name, fresh in untrained.items():
        axis = {"down": -2, "up": -1}.get(name.rpartition(".")[2])
        if axis is not None and name in given:
            rank = given[name].shape[axis]
            more = fresh.narrow(axis, rank, fresh.shape[axis] - rank)
            given[name] = torch.cat([given[name].to(more), more], axis)
    return given


def _draft_head(model: PreTrainedModel, config: AdaptConfig) -> DraftHead | None:
    """An untrained draft head; None if none is wanted."""
    if not config.head_rank:
        return None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return DraftHead(int(model.config.get_text_config().hidden_size), config.head_rank).to(model.device)


def _beside(trained: nn.Module, head: DraftHead | None) -> nn.Module:
    """What trains: the adapter or the model, together with the draft head if there is one."""
    return trained if head is None else nn.ModuleDict({"main": trained, "draft_head": head})


def _student(model: PreTrainedModel, mask: MaskToken, config: AdaptConfig) -> Head:
    if config.gradient_checkpointing and Mixers.of(model) is not None:  # checkpointed layers are not told of the blocks
        raise UsageError(
            f"gradient_checkpointing is not supported for {type(model).__name__}, whose recurrent layers start each block "
            "from a kept state; leave it out"
        )
    return Head(model, mask.id, under=checkpointed(model) if config.gradient_checkpointing else nullcontext)


def _layers(model: PreTrainedModel, config: AdaptConfig) -> list[str]:
    try:
        return adaptable_layers(model, config.layers)
    except DecodingError as error:
        raise UsageError(f"layers: {error}") from error


def _adapter(
    model: PreTrainedModel, mask_id: int, rank: int, layers: list[str], seed: int, row: torch.Tensor | None
) -> GatedAdapter:
    """An adapter attached to the model. The mask's vector starts as `row`; if `row` is None, noise takes its place."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapter = GatedAdapter(model, mask_id=mask_id, rank=rank, layers=layers, noise=row is None)
    if adapter.mask_vector is not None and row is not None:
        adapter.mask_vector.data.copy_(row)
    adapter.attach(model)
    return adapter


def _save_whole(
    model: PreTrainedModel,
    loaded: Loaded,
    config: AdaptConfig,
    head: DraftHead | None,
    mtp: MtpConfig,
    decoding: Mapping[str, Any],
    files: Mapping[str, str],
) -> None:
    save_checkpoint(
        model,
        loaded.tokenizer,
        mtp,
        config.output,
        overwrite=config.overwrite,
        extra_files=files,
        head=head,
        decoding=decoding,
    )
