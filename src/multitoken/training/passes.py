"""The forward passes of one training step: the student proposes all blocks, and the teacher reads the proposals.

| what trains | student                                              | teacher                                           |
|-------------|------------------------------------------------------|---------------------------------------------------|
| all weights | one pass over [real tokens, blocks]                  | the same pass of a frozen copy, on the proposals  |
| a gate      | the real tokens without gradient, kept in a cache;   | the same model on the proposals, with that cache: |
|             | then only the masks, with gradient                   | there are no masks, so the gate is shut           |

Shapes: B rows, T real tokens, M slots of all blocks, D hidden. Hidden states are those after the last norm.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from multitoken.decoding.attention import AttentionRule, Masks
from multitoken.decoding.block_states import BlockStates, block_inputs
from multitoken.decoding.blocks import BlockBatch
from multitoken.decoding.mixers import Mixers, cache_inputs
from multitoken.decoding.noise import stir

from .head import Head

MOST_TOKENS = 2048  # of a prefix in one pass, so that the memory of its activations and masks is bounded


@dataclass(frozen=True)
class Hidden:
    """Hidden states at the real tokens [B, T, D] and at the slots of the blocks [B, M, D]."""

    real: Tensor
    blocks: Tensor


class Passes(Protocol):
    """Two heads, and the passes that compute the hidden states for them."""

    student: Head
    teacher: Head

    def propose(self, batch: BlockBatch) -> Hidden:
        """The student's hidden states, with gradient where there is one."""
        ...

    def read(self, batch: BlockBatch, proposals: Tensor | None) -> Hidden:
        """The teacher's hidden states, on proposals [B, M]. None: only those of the real tokens; `blocks` is empty."""
        ...


class PackedPasses:
    """All weights train: student and teacher are two models, and the gradient also flows through the real tokens."""

    def __init__(self, student: Head, teacher: Head, rule: AttentionRule) -> None:
        self.student, self.teacher, self.rule = student, teacher, rule

    def propose(self, batch: BlockBatch) -> Hidden:
        return self._pass(self.student, batch.ids, batch)

    @torch.no_grad()
    def read(self, batch: BlockBatch, proposals: Tensor | None) -> Hidden:
        if proposals is not None:
            return self._pass(self.teacher, batch.with_proposals(proposals), batch)
        return self._pass(self.teacher, batch.ids[:, : batch.real], batch)

    def _pass(self, head: Head, ids: Tensor, batch: BlockBatch) -> Hidden:
        width = ids.shape[1]
        positions = batch.positions[:, :width]
        row = slice(width)
        masks = self.rule.between(positions, positions, batch.rule(row, row))
        carried = block_inputs(head.model, batch)
        hidden = head.trunk(input_ids=ids, attention_mask=masks, position_ids=positions, **carried)
        return Hidden(hidden[:, : batch.real], hidden[:, batch.real :])


class GatedPasses:
    """A gate trains. The real tokens are computed as in the original model, so they run once, without a backward pass, and
    in chunks where there are many.

    The gradient starts at the masks. Position 0 of a block gives the original model's own next token, so there is nothing
    to learn there.
    """

    def __init__(self, head: Head, rule: AttentionRule, *, noise: bool = False) -> None:
        self.student = self.teacher = head
        self.rule = rule
        self._has_noise = noise
        self._prefix: _Prefix | None = None

    def propose(self, batch: BlockBatch) -> Hidden:
        self._stir(batch)
        self._prefix = self._run_prefix(batch)
        return self._behind(batch, batch.ids[:, batch.real :][:, batch.place > 0])

    @torch.no_grad()
    def read(self, batch: BlockBatch, proposals: Tensor | None) -> Hidden:
        """Uses the prefix of the last `propose`, which must have had the same batch."""
        assert self._prefix is not None, "propose comes first"
        if proposals is None:
            return Hidden(self._prefix.real, self._prefix.real[:, :0])
        return self._behind(batch, batch.with_proposals(proposals)[:, batch.real :][:, batch.place > 0])

    def _stir(self, batch: BlockBatch) -> None:
        """An adapter without a mask vector sees different noise in every pass. In decoding, it sees noise that no training
        pass had."""
        gate = self.student.model.__dict__.get("_mtp_gate")
        if self._has_noise and gate is not None:
            gate.noise_seed = stir(1, batch.ids)

    @torch.no_grad()
    def _run_prefix(self, batch: BlockBatch) -> "_Prefix":
        model = self.student.model
        mixers = Mixers.of(model)
        states = BlockStates(batch, mixers, anchors_repeated=False) if mixers is not None else None
        cache = PrefixCache(model.config.get_text_config().num_hidden_layers, states)
        row = torch.arange(batch.real, device=batch.ids.device)
        chunks = []
        for queries in row.split(MOST_TOKENS if states is None else batch.real):
            keys = row[: int(queries[-1]) + 1]
            chunks.append(
                self.student.trunk(
                    input_ids=batch.ids[:, queries],
                    attention_mask=self._masks(batch, queries, keys),
                    position_ids=batch.positions[:, queries],
                    **cache_inputs(model, cache),
                )
            )
        cache.freeze()
        masks = batch.real + (batch.place > 0).nonzero()[:, 0]
        allowed = self._masks(batch, masks, torch.cat([row, masks]))
        return _Prefix(cache, torch.cat(chunks, 1), batch.positions[:, masks], allowed)

    def _masks(self, batch: BlockBatch, queries: Tensor, keys: Tensor) -> Masks:
        """The masks for `queries` and `keys`, indices in the row. Anchors are visible as the real tokens that they are."""
        allowed = batch.rule(queries, keys, anchors_repeated=False)
        return self.rule.between(batch.positions[:, queries], batch.positions[:, keys], allowed)

    def _behind(self, batch: BlockBatch, ids: Tensor) -> Hidden:
        """ids [B, number of masks]: the tokens at the masks. Position 0 of a block has the state of the real token at its
        anchor."""
        prefix = self._prefix
        assert prefix is not None
        behind = self.student.trunk(
            input_ids=ids,
            attention_mask=prefix.masks,
            position_ids=prefix.positions,
            **cache_inputs(self.student.model, prefix.cache),
        )
        first = batch.place == 0
        anchors = batch.target[:, first] - 1
        at_anchors = prefix.real.gather(1, anchors[..., None].expand(-1, -1, prefix.real.shape[-1]))
        source = torch.where(first, first.cumsum(0) - 1, len(batch.ks) + (~first).cumsum(0) - 1)
        return Hidden(prefix.real, torch.cat([at_anchors.to(behind.dtype), behind], 1)[:, source])


@dataclass(frozen=True)
class _Prefix:
    cache: "PrefixCache"
    real: Tensor  # [B, T, D]
    positions: Tensor  # [B, number of masks]
    masks: Masks  # masks as queries, real tokens and masks as keys


class PrefixCache(Cache):
    """Keys and values of a prefix, collected during its passes. Later passes read them and leave nothing in the cache.
    recurrent: the same for the states of recurrent layers, if there are any; the prefix is then run in one pass."""

    def __init__(self, layers: int, recurrent: BlockStates | None = None) -> None:
        super().__init__(layers=[_PrefixLayer() for _ in range(layers)])
        self.recurrent = recurrent

    def has_previous_state(self, layer_idx: int | None = None, state_idx: int | None = None) -> bool:
        return False

    def freeze(self) -> None:
        if self.recurrent is not None:
            self.recurrent.close()
        for layer in self.layers:
            assert isinstance(layer, _PrefixLayer)
            layer.frozen = True


class _PrefixLayer(CacheLayerMixin):
    is_sliding = False

    def __init__(self) -> None:
        super().__init__()
        self.frozen = False

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.keys, self.values, self.is_initialized = key_states, value_states, True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if self.keys is not None and self.values is not None:
            key_states = torch.cat([self.keys, key_states], 2)
            value_states = torch.cat([self.values, value_states], 2)
        if not self.frozen:
            self.lazy_initialization(key_states, value_states)
        return key_states, value_states

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        return self.keys.shape[2] if self.keys is not None else 0

    def get_max_length(self) -> int:
        return -1
