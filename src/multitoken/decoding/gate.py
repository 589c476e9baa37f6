"""The gate: a low-rank adapter that acts at masks and nowhere else.

It never acts at real tokens. Their logits and cache entries stay those of the original model. Next-token decoding of
the gated model therefore *is* the original's, and Exact, which confirms every token by it, loses nothing. (The idea of
a gated low-rank adapter for mask tokens: arXiv 2507.11851, section 3.1.)

The model itself is not changed. Hooks read the ids before the embedding, insert the mask's own vector, and add the
update to the output of each adapted layer. The mask's id may therefore be outside the vocabulary. For decoding, an
update that is not much smaller than its layer's matrix is instead added to a copy of the matrix in advance. Masks then
go through the copy, and real tokens through the original matrix (`_merge`).

Shapes: B rows, S tokens, N masks among them, D in, E out, R rank.
"""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from .adaptable import at_tokens, is_experts, is_linear, sides
from .failures import DecodingError
from .low_rank import Gate, LowRank
from .mixers import Mixers
from .noise import noise_ids


class GatedAdapter(nn.Module):
    """The adapter of one model: the mask's own vector and a `LowRank` for each adapted layer, by the layer's name.

    The vector is treated as one more row of the embedding matrix: if a family changes its rows (Gemma scales them), the
    vector is changed in the same way. With `noise` there is no vector. Masks then take the rows of tokens drawn at
    random (module `noise`), and the adapter is a plain low-rank adapter.

    Holds no part of the model, so its `state_dict` is the adapter alone.
    """

    def __init__(
        self, model: PreTrainedModel, *, mask_id: int, rank: int, layers: Iterable[str], noise: bool = False
    ) -> None:
        super().__init__()
        self.gate = Gate(mask_id)
        self.rank = rank
        self.names = list(layers)
        embedding = model.get_input_embeddings()
        self._scale = _scale_of(embedding)
        width = int(embedding.weight.shape[1])  # pyright: ignore[reportCallIssue, reportIndexIssue, reportAttributeAccessIssue, reportArgumentType]
        self.mask_vector = None if noise else nn.Parameter(torch.zeros(width, device=_place_of(embedding)))
        self._positions: Tensor | None = None  # of the current pass, [B or 1, S]; None: from 0 on
        hidden = int(model.config.get_text_config().hidden_size)
        self.updates = nn.ModuleList(LowRank(*sides(model.get_submodule(name), hidden), rank) for name in self.names)
        # Each layer, the forward that replaces its own in passes with masks, and a forward set by another library, such
        # as accelerate.
        self._acts: list[tuple[nn.Module, Any, Any]] = []
        self._acting = False
        for name, update in zip(self.names, self.updates, strict=True):
            update.to(_place_of(model.get_submodule(name)))

    def attach(self, model: PreTrainedModel) -> None:
        """Attach the adapter to `model`, the model that it was made for."""
        self._watch(model)
        for i, name in enumerate(self.names):
            # A partial of a method, not a closure: a deep copy of the model then gets a copy of the adapter as well.
            model.get_submodule(name).register_forward_hook(partial(self._add, i))

    def attach_for_decoding(self, model: PreTrainedModel) -> None:
        """Like `attach`, but updates are merged (`_merge`), and passes without masks run the layers unchanged."""
        merged = self._merge(model)
        for i, name in enumerate(self.names):
            layer = model.get_submodule(name)
            forward = partial(self._split, layer) if i in merged else partial(self._run, i, layer.forward)
            self._acts.append((layer, forward, layer.__dict__.get("forward")))
        self._acting = False  # the last pass in training may have set it
        self.gate.act = self._act
        self._watch(model)

    def _watch(self, model: PreTrainedModel) -> None:
        """Read the ids of every pass, and insert the mask's vector."""
        model.__dict__["_mtp_gate"] = self.gate
        if (mixers := Mixers.of(model)) is not None:
            mixers.followers.append(self.gate)
        embedding: Any = model.get_input_embeddings()
        embedding.register_forward_pre_hook(self._hide)
        embedding.register_forward_hook(self._put)
        if self.mask_vector is None:
            model.get_decoder().register_forward_pre_hook(self._note_positions, with_kwargs=True)
        for other in model.modules():  # Gemma 4 also has one for each layer
            if isinstance(other, nn.Embedding) and other is not embedding and other.num_embeddings <= self.gate.mask_id:
                other.register_forward_pre_hook(self._hide_beyond)

    @torch.no_grad()
    def _merge(self, model: PreTrainedModel) -> set[int]:
        """Merge updates into their layers for decoding, and return the indices of the merged layers.

        An update is merged if it has at least half as many numbers as its layer's matrix. It is added to a copy of the
        matrix, which masks then go through. A second copy, for real tokens, is stored next to it, so that both are one
        product (`Gate.split`). After this, the adapter in `model` can no longer be trained.
        """
        merged = set()
        for i, name in enumerate(self.names):
            layer, update = model.get_submodule(name), self.updates[i]
            assert isinstance(update, LowRank)
            # Quantised layers and their weights have other types.
            if type(layer) is not nn.Linear or type(layer.weight.data) is not Tensor or layer.weight.is_meta:
                continue
            if 2 * (update.down.numel() + update.up.numel()) < layer.weight.numel():
                continue
            whole = layer.weight.float() + update.up @ update.down
            both = torch.stack([layer.weight.t(), whole.to(layer.weight.dtype).t()])
            layer.register_buffer("weights_by_kind", both, persistent=False)
            merged.add(i)
        return merged

    def _hide(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if self.gate.noted is not None:  # inside compiled layers nothing is recorded or changed
            self._is_mask = self.gate.noted if self.gate.is_open else None
        else:
            self._is_mask = self.gate.look(args[0])
            self._act(self._is_mask is not None)
        if self._is_mask is None:
            return args
        return (args[0].masked_fill(self._is_mask, 0), *args[1:])

    def _hide_beyond(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0].masked_fill(args[0] == self.gate.mask_id, 0), *args[1:])

    def _act(self, there: bool) -> None:
        """Put the adapter's forward into the adapted layers, or remove it: a pass without masks has no extra cost."""
        if there == self._acting:
            return
        self._acting = there
        for layer, forward, before in self._acts:
            if there or before is not None:
                layer.__dict__["forward"] = forward if there else before
            else:
                del layer.__dict__["forward"]

    def _run(self, i: int, forward: Any, *args: Any, **named: Any) -> Tensor:
        return self.gate.add(self.updates[i], args[0], forward(*args, **named))  # pyright: ignore[reportArgumentType]

    def _note_positions(self, module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        self._positions = named.get("position_ids")

    def _put(self, module: nn.Module, args: tuple[Tensor, ...], vectors: Tensor) -> Tensor:
        if self._is_mask is None:
            return vectors
        if self.mask_vector is None:
            places = self._positions
            if places is None:
                places = torch.arange(vectors.shape[1], device=vectors.device)[None]
            weight: Any = module.weight
            rows = weight[noise_ids(places, len(weight), self.gate.noise_seed)] * self._scale
            return torch.where(self._is_mask[..., None], rows.to(vectors.dtype), vectors)
        return torch.where(self._is_mask[..., None], (self.mask_vector * self._scale).to(vectors.dtype), vectors)

    def _add(self, i: int, module: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> Tensor:
        return self.gate.add(self.updates[i], args[0], y)  # pyright: ignore[reportArgumentType]

    def _split(self, layer: nn.Module, x: Tensor) -> Tensor:
        assert isinstance(layer, nn.Linear)
        if not self.gate.is_open:
            return F.linear(x, layer.weight, layer.bias)
        y = self.gate.split(x, layer.weights_by_kind)  # pyright: ignore[reportArgumentType]
        return y if layer.bias is None else y + layer.bias

    @contextmanager
    def closed(self) -> Iterator[None]:
        """Inside this context, the model acts as the original, which is the teacher."""
        before, self.gate.closed = self.gate.closed, True
        try:
            yield
        finally:
            self.gate.closed = before


def adaptable_layers(model: PreTrainedModel, pattern: str | None = None) -> list[str]:
    """Names of the layers inside the decoder that an adapter can be applied to and whose name matches `pattern`.

    The pattern is a regular expression that may match anywhere in the name. The layers are linear layers, except the
    output matrix, and modules that hold all fused experts of a layer.

    A layer is included only if its inputs are exactly the tokens of the pass. This excludes layers that recompute
    values for all cached tokens, and single experts, which are given only their own tokens. Raises `DecodingError` if
    no layer is left.
    """
    head = model.get_output_embeddings()
    could = {name: m for name, m in model.named_modules() if m is not head and (is_linear(m) or is_experts(m))}
    able = at_tokens(model, could)
    chosen = [name for name in able if pattern is None or re.search(pattern, name)]
    if not chosen:
        kinds = ", ".join(sorted({name.rsplit(".", 1)[-1] for name in able})) or "none"
        raise DecodingError(
            f"no layer of {type(model).__name__} matches {pattern!r}; layers that can be adapted: {kinds}"
        )
    return chosen


@torch.no_grad()
def _scale_of(embedding: Any) -> float:
    """The factor by which an embedding scales its rows. Raises `DecodingError` if it does anything else to them."""
    scale, weight = float(getattr(embedding, "embed_scale", 1.0)), embedding.weight
    ids = torch.arange(min(8, len(weight)), device=weight.device)
    # Weights that are stored elsewhere until needed (accelerate's offload) are on "meta" and cannot be checked.
    if not weight.is_meta and not torch.allclose(
        embedding.forward(ids).float(), weight[ids].float() * scale, rtol=0.02, atol=1e-6
    ):
        raise DecodingError(
            f"{type(embedding).__name__} does more to its rows than scale them, so it cannot have a mask vector"
        )
    return scale


def _place_of(module: nn.Module) -> torch.device:
    """The device that a layer computes on. Weights may be stored elsewhere until needed (accelerate's offload)."""
    moved_to = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
    return torch.device(moved_to) if moved_to is not None else next(module.parameters()).device
