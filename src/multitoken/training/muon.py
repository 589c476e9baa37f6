"""Muon for every machine. torch's own orthogonalises in bfloat16. On a CPU without bfloat16 instructions that takes longer
than the whole rest of a step."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from multitoken.models.placement import cpu_gains_by_bf16


class Muon(torch.optim.Muon):
    """`torch.optim.Muon` with the learning rate adjusted to AdamW's (`match_rms_adamw`). It computes in float32 on CPUs
    that are slow in bfloat16. (https://kellerjordan.github.io/posts/muon; arXiv 2502.16982, eq. 4)"""

    def __init__(self, params: list[torch.nn.Parameter], *, lr: float, weight_decay: float) -> None:
        super().__init__(params, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        places = {p.device.type for group in self.param_groups for p in group["params"]}
        if places != {"cpu"} or cpu_gains_by_bf16():
            return super().step(closure)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weights in group["params"]:
                if weights.grad is not None:
                    self._move(weights, weights.grad, group)
        return loss

    def _move(self, weights: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[weights]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        average: Tensor = state["momentum_buffer"].lerp_(gradient, 1 - group["momentum"])
        update = gradient.lerp(average, group["momentum"]) if group["nesterov"] else average
        update = orthogonal(update.float(), group["ns_coefficients"], group["ns_steps"], group["eps"])
        weights.mul_(1 - group["lr"] * group["weight_decay"])
        weights.add_(update, alpha=-group["lr"] * 0.2 * max(weights.shape) ** 0.5)


def orthogonal(matrix: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """Approximately the nearest orthogonal matrix: singular values of about 1, by `steps` steps of a quintic Newton-Schulz
    iteration. [A, B] -> [A, B]"""
    a, b, c = coefficients
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.t() if tall else matrix
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.t()
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.t() if tall else x
