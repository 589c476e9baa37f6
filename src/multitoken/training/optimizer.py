"""The optimizer of a run: AdamW, or Muon for the inner matrices with AdamW for the rest."""

from collections.abc import Callable
from typing import Any, overload

import torch
from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel

from .muon import Muon

_WIDTH = 256  # hidden size at which the default rates were found
_FRESH = 5.0  # how many times faster an untrained draft head learns under AdamW than the trained weights beside it
_STEADY = 10.0  # how much more the original's next tokens weigh at the end of a run, at most
_RATES = {
    "muon": {"gated": 5e-3, "lora": 5e-3, "full": 3e-3},
    "adamw": {"gated": 2e-3, "lora": 2e-3, "full": 1e-3},
}


class MuonAdamW(Optimizer):
    """Muon and AdamW as one optimizer, for trainers that know one. Group 0 is Muon's, the others AdamW's."""

    def __init__(
        self, matrices: list[nn.Parameter], others: list[nn.Parameter], *, lr: float, weight_decay: float
    ) -> None:
        self.muon = Muon(matrices, lr=lr, weight_decay=weight_decay)
        # A group, for a list may be empty: an adapter without a mask vector or a draft head is all matrices.
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


def default_rate(method: str, optimizer: str, width: int) -> float:
    """The learning rate for a model of hidden size `width`, if none is given.

    A step of Muon (as `match_rms_adamw` scales it) moves what a matrix does to its input in proportion to sqrt(width), one of
    AdamW to width: where every weight moves, the rate falls by as much in wider models. In narrower ones it does not climb:
    measured, they lose more by it (docs/defaults.md). A low-rank adapter's factors have one short side.
    """
    rate = _RATES[optimizer][method]
    if method != "full":
        return rate
    return rate * min(1.0, _WIDTH / width) ** (0.5 if optimizer == "muon" else 1.0)


def build_optimizer(
    model: nn.Module, *, name: str, lr: float, weight_decay: float, fresh: nn.Module | None = None
) -> Optimizer:
    """`weight_decay` pulls on matrices only, never on embeddings (the mask token's row among them), norms or biases, nor on
    `fresh`, an untrained module beside trained weights, which AdamW trains faster than these."""
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
    """The share of the highest learning rate behind `done` of a run, both in [0, 1]: linear warm-up over its first `warmup`, then
    linear to zero."""
    return min(1.0, (done + 1e-3) / warmup) if done < warmup else max(0.0, (1.0 - done) / (1.0 - warmup))


def weight_at(done: float, warmup: float) -> float:
    """How much more than at the start the original's next tokens weigh behind `done` of a run: the more, the lower the rate, for
    what the large steps have moved is put back by the small ones (docs/defaults.md)."""
    return 1.0 if done < warmup else min(_STEADY, 1.0 / max(1e-9, rate_at(done, warmup)))


def build_schedule(optimizer: Optimizer, progress: Callable[[], float], warmup: float) -> LambdaLR:
    """The rates of all groups by `rate_at`. `progress()` is in [0, 1]."""
    return LambdaLR(optimizer, lambda _: rate_at(progress(), warmup))
