"""Weights of a frozen model in 8 bits (torchao) or in 4 (bitsandbytes' NF4, arXiv 2305.14314)."""

import warnings
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from multitoken.decoding.mixers import Mixers
from multitoken.errors import UsageError

_LIBRARIES = {"int8": "torchao", "nf4": "bitsandbytes"}
KINDS = ("none", *_LIBRARIES)


def quantize_weights(model: PreTrainedModel, kind: str) -> None:
    """Hold the weights of the linear layers, the output matrix aside, in 8 or 4 bits a number, in place. "none": as they are.

    The output matrix stays: it may be tied to the embedding, and it decides which of two near tokens is the first.
    Raises `UsageError` for another kind, where the library is not installed, and for a model whose layers cannot be replaced.
    """
    if kind not in KINDS:
        raise UsageError(f"quantize is {kind!r}; expected one of {', '.join(KINDS)}")
    if kind == "none":
        return
    try:
        (_to_int8 if kind == "int8" else _to_nf4)(model)
    except ImportError as error:
        raise UsageError(
            f"quantize={kind} needs {_LIBRARIES[kind]}; install it: pip install 'multitoken[quantize]'"
        ) from error


def _to_int8(model: PreTrainedModel) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of kernels for other machines
        from torchao.quantization import Int8WeightOnlyConfig, quantize_
    head = model.get_output_embeddings()
    quantize_(model, Int8WeightOnlyConfig(), filter_fn=lambda m, _: isinstance(m, nn.Linear) and m is not head)


def _to_nf4(model: PreTrainedModel) -> None:
    if Mixers.of(model) is not None:
        raise UsageError(
            f"quantize=nf4 is not for {type(model).__name__}: kernels of its recurrent layers read weights themselves, and "
            "these would be packed; use quantize=int8"
        )
    if len(set((getattr(model, "hf_device_map", None) or {}).values())) > 1:
        raise UsageError(
            "quantize=nf4 needs the model on one device, found a device_map over several; leave device_map out"
        )
    head = model.get_output_embeddings()
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is nn.Linear and layer is not head:
                setattr(parent, name, _in_nf4(layer))


def _in_nf4(layer: nn.Linear) -> nn.Module:
    from bitsandbytes import nn as bits

    kinds: Any = bits
    sides = layer.in_features, layer.out_features
    small = kinds.Linear4bit(*sides, bias=False, compute_dtype=layer.weight.dtype, quant_type="nf4", device="meta")
    # The kernel for CPUs computes in bfloat16 whatever the model is in, and only where nothing trains: two arithmetics.
    small.support_avx512bf16_for_cpu = False
    small.weight = kinds.Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4", module=small)
    small.bias = layer.bias
    return small.to(layer.weight.device).train(layer.training)  # which packs them
