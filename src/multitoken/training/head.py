"""From hidden states to logits, computed in chunks.

With a vocabulary of 150,000, the float32 logits of 800 positions take half a gigabyte. Here they are never all in memory
at once. The trunk computes hidden states, and the head turns as many of them into logits at a time as fit. The logits
are dropped after use and computed again in the backward pass.

What a model family does after its output matrix (soft caps, scales) does not need to be known here: the head is the
model's own `forward`, with the trunk replaced by a function that returns the given hidden states.

Shapes: D hidden, V vocabulary, N positions in any shape.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_outputs import MoeModelOutputWithPast

from multitoken.errors import UnsupportedModelError

MOST_LOGITS = 2**24  # in one chunk: 64 MiB of float32


def suppress(logits: Tensor, mask_id: int) -> Tensor:
    """Float32 logits with the mask token's column, if it has one, at -inf, so it is never proposed, taught or emitted."""
    column = torch.arange(logits.shape[-1], device=logits.device) == mask_id
    return logits.float().masked_fill(column, -torch.inf)


def divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) over the last axis. Columns where log_p is -inf add nothing."""
    terms = log_p.exp() * (log_p - log_q)
    return torch.where(log_p == -torch.inf, 0.0, terms).sum(-1)


class _HiddenStates(MoeModelOutputWithPast):
    """A trunk's output that holds only hidden states. Any other attribute that a model family reads is None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)
        return


@dataclass(frozen=True)
class Moved:
    """What a draft head adds to the logits: states [..., R] times columns [V, R] (`decoding/draft_head.py`)."""

    states: Tensor
    columns: Tensor

    def flat(self) -> "Moved":
        return Moved(self.states.reshape(-1, self.states.shape[-1]), self.columns)

    def at(self, chosen: Tensor) -> "Moved":
        """At the chosen positions only. chosen [...] bool."""
        return Moved(self.states[chosen], self.columns)


class Head:
    """From the hidden states of one model to its logits.

    `under` makes the context of each pass through the trunk, for example one in which an adapter is switched off.
    Raises `UnsupportedModelError` for a model that cannot be split into trunk and head.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        mask_id: int,
        *,
        under: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self.model = model
        self.mask_id = mask_id
        self.under = under
        self.vocabulary: int = model.config.get_text_config().vocab_size
        self.check()

    def trunk(self, **inputs: Any) -> Tensor:
        """Hidden states [B, S, D] after the last norm: one forward pass without the head."""
        with self.under():
            return self.model.base_model(**inputs).last_hidden_state

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., D] -> float32 [..., V], the mask token's column at -inf."""
        flat = hidden.reshape(1, -1, hidden.shape[-1])
        trunk = self.model.base_model
        before = trunk.__dict__.get("forward")  # accelerate's, where it places the model
        trunk.forward = lambda *_, **__: _HiddenStates(last_hidden_state=flat)  # shadows the class's method
        try:
            ids = torch.zeros(1, flat.shape[1], dtype=torch.long, device=flat.device)
            logits = self.model(input_ids=ids, use_cache=False).logits
        finally:
            del trunk.forward
            if before is not None:
                trunk.forward = before
        return suppress(logits, self.mask_id).view(*hidden.shape[:-1], -1)

    def embed(self, ids: Tensor) -> Tensor:
        """The input embeddings of real tokens. [...] -> [..., D]."""
        weight: Tensor = self.model.get_input_embeddings().weight  # pyright: ignore[reportAssignmentType]
        return F.embedding(ids, weight)

    @torch.no_grad()
    def best(self, hidden: Tensor, moved: "Moved | None" = None) -> Tensor:
        """The argmax at each position. [..., D] -> [...]."""
        flat, moved = hidden.reshape(-1, hidden.shape[-1]), moved and moved.flat()
        return torch.cat([self._moved(flat, moved, part).argmax(-1) for part in self._parts(len(flat))]).view(
            hidden.shape[:-1]
        )

    @torch.no_grad()
    def best_and_sure(self, hidden: Tensor, moved: "Moved | None" = None) -> tuple[Tensor, Tensor]:
        """The argmax at each position and its probability, each [..., D] -> [...]."""
        flat, moved = hidden.reshape(-1, hidden.shape[-1]), moved and moved.flat()
        tops = [self._moved(flat, moved, part).softmax(-1).max(-1) for part in self._parts(len(flat))]
        shape = hidden.shape[:-1]
        return torch.cat([top.indices for top in tops]).view(shape), torch.cat([top.values for top in tops]).view(shape)

    def cross_entropy(self, hidden: Tensor, labels: Tensor, moved: "Moved | None" = None) -> Tensor:
        """hidden [N, D], labels [N] -> [N]."""
        return self._by_place(
            len(hidden),
            lambda part: F.cross_entropy(self._moved(hidden, moved, part), labels[part], reduction="none"),
        )

    def divergence_from(
        self, teacher: "Head", taught: Tensor, hidden: Tensor, moved: "Moved | None" = None
    ) -> tuple[Tensor, Tensor]:
        """KL(teacher || ours), and the probability that both distributions share. taught, hidden [N, D] -> [N], [N]."""

        def by_place(part: slice) -> Tensor:
            with torch.no_grad():
                log_p = teacher.logits(taught[part]).log_softmax(-1)
            log_q = self._moved(hidden, moved, part).log_softmax(-1)
            common = torch.minimum(log_p, log_q.detach()).exp().sum(-1)
            return torch.stack([divergence(log_p, log_q), common], 1)

        both = self._by_place(len(hidden), by_place)
        return both[:, 0], both[:, 1].detach()

    def _moved(self, hidden: Tensor, moved: "Moved | None", part: slice) -> Tensor:
        logits = self.logits(hidden[part])
        return logits if moved is None else logits + moved.states[part] @ moved.columns.t()

    def _parts(self, places: int) -> Iterator[slice]:
        size = max(1, MOST_LOGITS // self.vocabulary)
        return (slice(start, start + size) for start in range(0, max(1, places), size))

    def _by_place(self, places: int, by_place: Callable[[slice], Tensor]) -> Tensor:
        parts = list(self._parts(places))
        if len(parts) == 1:
            return by_place(parts[0])
        return torch.cat([checkpoint(by_place, part, use_reentrant=False) for part in parts])  # pyright: ignore[reportArgumentType, reportCallIssue]

    @torch.no_grad()
    def check(self) -> None:
        """Check on a few ids that the trunk followed by the head gives the same logits as the model."""
        ids = torch.arange(4, device=self.model.device)[None] % self.vocabulary
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
        with self.under():
            whole = suppress(self.model(**inputs).logits, self.mask_id)
        try:
            parts = self.logits(self.trunk(**inputs))
        except (AttributeError, TypeError, RuntimeError) as error:
            parts, reason = None, str(error)
        else:
            reason = "its logits are not a function of its last hidden states alone"
        if parts is None or not torch.allclose(parts, whole, rtol=1e-2, atol=1e-2, equal_nan=True):
            raise UnsupportedModelError(f"{type(self.model).__name__} cannot be trained in chunks: {reason}")
