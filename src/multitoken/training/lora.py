"""Low-rank adapters that act at every position, by PEFT."""

import warnings
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers import PreTrainedModel

from multitoken.errors import UsageError

if TYPE_CHECKING:
    from peft import PeftModel


def with_lora(model: PreTrainedModel, layers: list[str], *, rank: int, seed: int) -> "PeftModel":
    """The model, changed in place, with an adapter in each of `layers`: linear layers, and whole blocks of fused experts.

    Raises `UsageError` where PEFT cannot adapt one of them.
    """
    from peft import LoraConfig, get_peft_model

    modules = {name: model.get_submodule(name) for name in layers}
    fused = {
        name: [own for own, parameter in module.named_parameters(recurse=False) if parameter.ndim == 3]
        for name, module in modules.items()
    }
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=[name for name in layers if not fused[name]],
        target_parameters=[f"{name}.{own}" for name in layers for own in fused[name]] or None,
        fan_in_fan_out=any(type(module).__name__ == "Conv1D" for module in modules.values()),
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT calls functions that transformers is about to rename
        torch.manual_seed(seed)
        try:
            return get_peft_model(model, config)  # pyright: ignore[reportReturnType]
        except (ValueError, TypeError, NotImplementedError) as error:
            raise UsageError(f"method is lora, but PEFT cannot adapt {type(model).__name__}: {error}") from error


def only_trained(*modules: nn.Module) -> nn.ParameterDict:
    """The trainable parameters themselves (not copies) in a module of their own, which is optimised, wrapped and saved."""
    trained = {}
    for number, module in enumerate(modules):
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                trained[f"{number}/{name}".replace(".", "/")] = parameter
    return nn.ParameterDict(trained)
