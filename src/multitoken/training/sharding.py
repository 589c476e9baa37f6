"""Models too large for one device, split over the processes of a run with torch's `fully_shard` (FSDP2).

Each layer is gathered only while it computes. A model that trains as a whole (method full) is split together with its
gradients and optimizer. Of a frozen model only the weights are split; every process has the whole adapter next to it, and
averages its gradients as usual.

What is saved is always whole, so a run may be resumed with a different number of processes.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer
from transformers import PreTrainedModel

from multitoken.errors import UsageError

from .objective import Distillation


def shard(distillation: Distillation, device: torch.device, processes: int) -> Distillation:
    """Split what trains and the frozen model next to it. -> the same object.

    Raises `UsageError` where the model does not say which of its modules are its layers.
    """
    mesh = init_device_mesh(device.type, (processes,))
    student, teacher = distillation.passes.student.model, distillation.passes.teacher.model
    trains_whole = teacher is not student
    for model in {id(m): m for m in (student, teacher)}.values():
        for layer in _layers(model):
            fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    if trains_whole:
        _shard_the_rest(distillation, mesh)
    for model in (student, teacher):
        _rest_to(model, device)
    return distillation.to(device)


def _shard_the_rest(distillation: Distillation, mesh: DeviceMesh) -> None:
    fully_shard(distillation, mesh=mesh)
    register_fsdp_forward_method(distillation, "examine")
    distillation.__dict__["_is_fsdp_managed_module"] = True  # how Trainer recognises it


def is_sharded(module: nn.Module) -> bool:
    """Whether what trains is split. An adapter next to a frozen model that is split is not."""
    return isinstance(module, FSDPModule)


def whole_state(module: nn.Module) -> dict[str, torch.Tensor]:
    """Every parameter, gathered, on the CPU. Tied ones are one tensor. All processes have to call this."""
    found: dict[int, torch.Tensor] = {}
    state: dict[str, torch.Tensor] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if id(parameter) not in found:
            found[id(parameter)] = _whole(parameter)
        state[name] = found[id(parameter)]
    return state


@torch.no_grad()
def load_whole(module: nn.Module, state: dict[str, torch.Tensor]) -> None:
    """The inverse of `whole_state`: each process takes its own parts. All processes have to call this."""
    for name, parameter in module.named_parameters():
        parameter.copy_(_parts_of(state[name], parameter))


def join(distillation: Distillation) -> None:
    """Replace the parts by whole parameters, for saving. Nothing can be computed afterwards. All processes have to call
    this."""
    assert isinstance(distillation, FSDPModule)
    distillation.reshard()
    found: dict[int, nn.Parameter] = {}
    for module in list(distillation.trained.modules()):
        for name, parameter in list(module.named_parameters(recurse=False)):
            if id(parameter) not in found:
                found[id(parameter)] = nn.Parameter(_whole(parameter), requires_grad=False)
                found[id(found[id(parameter)])] = found[id(parameter)]
            module._parameters[name] = found[id(parameter)]


def whole_optimizer_state(optimizer: Any) -> dict[str, Any]:
    """What `state_dict` of an optimizer that is not split would return. All processes have to call this."""
    said = _bare(optimizer).state_dict()
    state = {number: {k: _whole(v) for k, v in of_one.items()} for number, of_one in said["state"].items()}
    return {**said, "state": state}


def load_optimizer_state(optimizer: Any, said: dict[str, Any]) -> None:
    """The inverse of `whole_optimizer_state`."""
    bare = _bare(optimizer)
    parameters = [parameter for group in bare.param_groups for parameter in group["params"]]
    state = {
        number: {k: _parts_of(v, parameters[number]) if v.ndim else v for k, v in of_one.items()}
        for number, of_one in said["state"].items()
    }
    bare.load_state_dict({**said, "state": state})


def _whole(parameter: torch.Tensor) -> torch.Tensor:
    whole = parameter.detach()
    return (whole.full_tensor() if isinstance(whole, DTensor) else whole).cpu()


def _parts_of(whole: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """What this process holds of a tensor that is split as `like` is."""
    whole = whole.to(like.device)
    return distribute_tensor(whole, like.device_mesh, like.placements) if isinstance(like, DTensor) else whole


def _bare(optimizer: Any) -> Optimizer:
    """The optimizer without accelerate's wrapper."""
    return getattr(optimizer, "optimizer", optimizer)


def _layers(model: PreTrainedModel) -> Iterator[nn.Module]:
    """The modules that transformers keeps on one device, usually the decoder layers."""
    names = set(getattr(model, "_no_split_modules", None) or ())
    layers = [module for module in model.modules() if type(module).__name__ in names]
    if not layers:
        raise UsageError(f"shard: {type(model).__name__} does not say which of its modules are layers; leave it out")
    yield from layers


@torch.no_grad()
def _rest_to(model: PreTrainedModel, device: torch.device) -> None:
    """Move what belongs to no layer (embeddings, norms, buffers) to the device. The split parts are already there."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not isinstance(parameter, DTensor):
                module._parameters[name].data = parameter.data.to(device)  # pyright: ignore[reportOptionalMemberAccess]
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = buffer.to(device)
