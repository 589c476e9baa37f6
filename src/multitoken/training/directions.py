"""Weights change along the input directions that real tokens use least, so that training loses little of the original model.

A layer with weight W [E, D] reads inputs x [D]. A change U of W moves its output at a real token by U x. The inputs of real tokens
are strong in some directions and weak in most. Masks, whose inputs are learned, can use the weak ones. So the weight is written as

    W = W_0 + B S,    S = (2 q (C + q I)^-1)^(1/2)

with B trained by the optimizer. C is the mean of x x' over real tokens in the original model, and q is a quantile of its
eigenvalues, the option `free_directions`. S is about sqrt(2) in directions weaker than q, and falls with the inputs' strength in
stronger ones. In terms of W: S multiplies the gradient before each step of the optimizer, and the change of W after it.

(Continual learning projects updates onto the directions without any input: arXiv 2103.07113, arXiv 2103.09762. Real tokens leave
no such direction here, so S weighs instead of projecting. What it is worth: docs/defaults.md.)

Shapes: D inputs of a layer, E outputs, N measured tokens, M directions that are told apart.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from multitoken.errors import UsageError

from .encoding import Sample
from .head import Head

_SAMPLES, _TOKENS = 256, 16  # measured: of the training data, and in each of them
_MOST = 2048  # directions that are told apart; in wider layers, the strongest ones
_LEAST = 1e-4  # of the mean eigenvalue: q is no less, or a layer with unused inputs would hardly train


class Weighting:
    """S of one layer. Multiply by it from the right."""

    def __init__(self, inputs: Tensor, free: float) -> None:
        """inputs [N, D]: of real tokens. free: the quantile of the eigenvalues that q is, in (0, 1)."""
        inputs = inputs.float()
        width = inputs.shape[1]
        mean = float(inputs.square().sum(1).mean()) / width
        strengths, directions = _spectrum(inputs)
        unseen = width - len(strengths)  # directions of a wide layer that are not told apart
        rest = max(0.0, mean * width - float(strengths.sum())) / max(1, unseen)
        place = int(free * (width - 1)) - unseen
        q = max(float(strengths[place]) if place >= 0 else rest, _LEAST * mean, 1e-30)
        scales = (2 * q / (strengths + q)).sqrt()
        self._rest = (2 * q / (rest + q)) ** 0.5
        # S itself [D, D], or in a wide layer what it adds to a multiple of the identity: [M, D] and [M, D], to be multiplied.
        self._parts = (
            (directions, directions * (scales - self._rest)[:, None])
            if unseen
            else ((directions.t() * scales) @ directions,)
        )

    def to(self, device: torch.device) -> "Weighting":
        self._parts = tuple(part.to(device) for part in self._parts)
        return self

    def __call__(self, update: Tensor) -> Tensor:
        """update [..., D] times S."""
        first, *second = (part.to(update.dtype) for part in self._parts)
        return update * self._rest + update @ first.t() @ second[0] if second else update @ first


def _spectrum(inputs: Tensor) -> tuple[Tensor, Tensor]:
    """The eigenvalues [M] of C, from the smallest on, and its eigenvectors [M, D]."""
    if inputs.shape[1] <= _MOST:
        strengths, vectors = torch.linalg.eigh(inputs.t() @ inputs / len(inputs))
        return strengths.clamp_min(0.0), vectors.t().contiguous()
    with torch.random.fork_rng(devices=[inputs.device] if inputs.device.type == "cuda" else []):
        torch.manual_seed(0)
        _, values, vectors = torch.svd_lowrank(inputs, q=min(_MOST, len(inputs)))
    return values.square().flip(0) / len(inputs), vectors.t().flip(0).contiguous()


@torch.no_grad()
def weightings(original: Head, layers: Iterable[str], samples: Sequence[Sample], free: float) -> dict[str, Weighting]:
    """S for each of these linear layers of the original model, measured on the training data. Layers that read the same inputs
    share one."""
    model, inputs = original.model, _Inputs()
    device = next(model.parameters()).device
    chosen = samples[:: max(1, len(samples) // _SAMPLES)][:_SAMPLES]
    with inputs.collected({name: model.get_submodule(name) for name in layers}):
        for number, sample in enumerate(chosen):
            inputs.start = number
            original.trunk(input_ids=torch.tensor([sample.ids], device=device), use_cache=False)
    made = {name: Weighting(torch.cat(inputs.found.pop(name)).to(device), free) for name in list(inputs.found)}
    return {name: made[inputs.like.get(name, name)] for name in (*made, *inputs.like)}


class _Inputs:
    """Collects the inputs of layers at some of the tokens of each pass."""

    def __init__(self) -> None:
        self.found: dict[str, list[Tensor]] = {}
        self.like: dict[str, str] = {}  # a layer -> the one before it, if both read the same tensor
        self.start = 0
        self._last: tuple[str, Tensor] | None = None

    @contextmanager
    def collected(self, modules: dict[str, nn.Module]) -> Iterator[None]:
        hooks = [m.register_forward_pre_hook(self._hook(name), with_kwargs=True) for name, m in modules.items()]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            self._last = None

    def _hook(self, name: str) -> Any:
        def collect(_: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            given: Tensor = args[0] if args else next(iter(named.values()))
            if self._last is not None and self._last[1] is given and name not in self.found:
                self.like[name] = self._last[0]
                return
            self._last = (name, given)
            tokens = given.reshape(-1, given.shape[-1])
            stride = max(1, len(tokens) // _TOKENS)
            self.found.setdefault(name, []).append(tokens[self.start % stride :: stride][:_TOKENS].cpu())

        return collect


class Steering:
    """Applies S to the weights of an optimizer, around each of its steps."""

    def __init__(self) -> None:
        self._steered: list[tuple[nn.Parameter, Weighting, bool]] = []
        self._row: tuple[nn.Parameter, int] | None = None
        self._before: list[Tensor] = []

    def add(self, weight: nn.Parameter, weighting: Weighting, *, transposed: bool = False) -> None:
        """weight [E, D], or [D, E] if transposed."""
        self._steered.append((weight, weighting.to(weight.device), transposed))

    def only_row(self, embedding: nn.Parameter, row: int) -> None:
        """Of this embedding, only one row trains."""
        self._row = (embedding, row)

    def attach(self, optimizer: Optimizer) -> None:
        optimizer.register_step_pre_hook(lambda *_: self._before_step())
        optimizer.register_step_post_hook(lambda *_: self._after_step())

    @torch.no_grad()
    def _before_step(self) -> None:
        self._before = []
        for weight, weighting, transposed in self._steered:
            self._before.append(_local(weight).clone())
            if weight.grad is not None:
                gradient = _local(weight.grad)
                gradient.copy_(_weighed(weighting, gradient, transposed))
        if self._row is not None and (gradient := self._row[0].grad) is not None:
            keep = torch.zeros(len(gradient), 1, dtype=gradient.dtype, device=gradient.device)
            keep[self._row[1]] = 1.0
            if isinstance(gradient, DTensor):
                keep = distribute_tensor(keep, gradient.device_mesh, gradient.placements)
            gradient.mul_(keep)

    @torch.no_grad()
    def _after_step(self) -> None:
        for (weight, weighting, transposed), before in zip(self._steered, self._before, strict=True):
            own = _local(weight)
            own.copy_(before + _weighed(weighting, own - before, transposed))
        self._before = []


def steering(original: Head, factors: Mapping[str, nn.Parameter], samples: Sequence[Sample], free: float) -> Steering:
    """The steering of these layers' weights, each of which multiplies the inputs of its layer (by name)."""
    found = weightings(original, factors, samples, free)
    result = Steering()
    for name, weighting in found.items():
        # A layer under LoRA is PEFT's, whose factor is never transposed.
        is_transposed = type(original.model.get_submodule(name)).__name__ == "Conv1D"
        if is_transposed and isinstance(factors[name], DTensor):
            raise UsageError(
                f"free_directions is {free:g}, but {name} is a Conv1D, whose inputs shard splits: add free_directions=1, or leave "
                "shard out"
            )
        result.add(factors[name], weighting, transposed=is_transposed)
    return result


def _weighed(weighting: Weighting, update: Tensor, transposed: bool) -> Tensor:
    return weighting(update.t()).t() if transposed else weighting(update)


def _local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor. Models are split by their weights' rows, so S applies to each part by itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
