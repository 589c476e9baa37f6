"""The optimizer of a run: AdamW, or Muon for the inner matrices and AdamW for the rest."""

from collections.abc import Callable
from typing import Any, overload

import torch
from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel

from .muon import Muon

_WIDTH = 256  # hidden size at which the default rates were found
_FRESH = 5.0  # under AdamW, the rate of an untrained draft head is this many times that of the trained weights
_STEADY = 10.0  # the original's next tokens weigh at most this many times more at the end of a run
_RATES = {
    "muon": {"gated": 5e-3, "lora": 5e-3, "full": 3e-3},
    "adamw": {"gated": 2e-3, "lora": 2e-3, "full": 1e-3},
}
_STEERED = 2.0  # times the rate of full under AdamW, if weights avoid the directions of real tokens (docs/defaults.md)


class MuonAdamW(Optimizer):
    """Muon and AdamW as one optimizer, for trainers that expect one. Group 0 is Muon's, the others AdamW's."""

    def __init__(
        self, matrices: list[nn.Parameter], others: list[nn.Parameter], *, lr: float, weight_decay: float
    ) -> None:
        self.muon = Muon(matrices, lr=lr, weight_decay=weight_decay)
        # A group, because the list may be empty: an adapter without a mask vector or a draft head is all matrices.
        self.adamw = AdamW([{"params": others}], lr=lr, betas=(0.9, 0.95), weight_decay=0.0)
        super().__init__([*matrices, *others], {"lr": lr})
        self.param_groups = [*self.muon.param_groups, *self.adamw.param_groups]

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.muon.step()
        self.adamw.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {"muon": self.muon.state_dict(), "adamw": self.adamw.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.muon.load_state_dict(state_dict["muon"])
        self.adamw.load_state_dict(state_dict["adamw"])
        self.param_groups = [*self.muon.param_groups, *self.adamw.param_groups]


def default_rate(method: str, optimizer: str, width: int, free: float = 1.0) -> float:
    """The learning rate for a model of hidden size `width`, if none is given. free: the share of free directions.

    A step of Muon (as `match_rms_adamw` scales it) changes the effect of a matrix on its input in proportion to
    sqrt(width), a step of AdamW in proportion to width. Where every weight trains, the rate is therefore lower by that
    factor in wider models. It is not higher in narrower ones: measured, they lose more with a higher rate
    (docs/defaults.md). The rate of a low-rank adapter does not change, because its factors have one short side.
    """
    rate = _RATES[optimizer][method]
    if method != "full":
        return rate
    if optimizer == "adamw" and free < 1:
        rate *= _STEERED
    return rate * min(1.0, _WIDTH / width) ** (0.5 if optimizer == "muon" else 1.0)


def build_optimizer(
    model: nn.Module, *, name: str, lr: float, weight_decay: float, fresh: nn.Module | None = None
) -> Optimizer:
    """The optimizer `name` for what trains in `model`.

    `weight_decay` applies to matrices only, never to embeddings (including the mask token's row), norms or biases. `fresh`
    is an untrained module next to trained weights: AdamW trains it faster than these and without weight decay.
    """
    embeddings = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    for module in model.modules():
        if isinstance(module, PreTrainedModel) and (output := module.get_output_embeddings()) is not None:
            embeddings |= {id(p) for p in output.parameters()}
    trained = [p for p in model.parameters() if p.requires_grad]
    untrained = list(fresh.parameters()) if fresh is not None and name == "adamw" else []
    apart = {id(p) for p in untrained}
    matrices = [p for p in trained if p.ndim == 2 and id(p) not in embeddings | apart]
    chosen = {id(p) for p in matrices} | apart
    others = [p for p in trained if id(p) not in chosen]
    if name == "muon":
        return MuonAdamW(matrices, others, lr=lr, weight_decay=weight_decay)
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    if untrained:
        groups.append({"params": untrained, "weight_decay": 0.0, "lr": _FRESH * lr})
    return AdamW(groups, lr=lr, betas=(0.9, 0.95))


def rate_at(done: float, warmup: float) -> float:
    """The learning rate after the share `done` of a run, as a share of the highest rate; both in [0, 1]. It rises linearly
    over the first `warmup` of the run, then falls linearly to zero."""
    return min(1.0, (done + 1e-3) / warmup) if done < warmup else max(0.0, (1.0 - done) / max(1e-9, 1.0 - warmup))


def weight_at(done: float, warmup: float) -> float:
    """How many times more than at the start the original's next tokens weigh after the share `done` of a run. The weight
    grows as the rate falls, because the small steps undo what the large steps have moved (docs/defaults.md)."""
    return 1.0 if done < warmup else min(_STEADY, 1.0 / max(1e-9, rate_at(done, warmup)))


def build_schedule(optimizer: Optimizer, progress: Callable[[], float], warmup: float) -> LambdaLR:
    """A schedule that scales the rates of all groups by `rate_at`. `progress()` is in [0, 1]."""
    return LambdaLR(optimizer, lambda _: rate_at(progress(), warmup))
