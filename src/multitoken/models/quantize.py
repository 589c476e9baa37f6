"""Weights of a frozen model in 8 bits (torchao) or in 4 (bitsandbytes' NF4, arXiv 2305.14314), made as they are read."""

import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedConfig, PreTrainedModel, TorchAoConfig

from multitoken.decoding.mixers import Mixers
from multitoken.errors import UsageError

_LIBRARIES = {"int8": "torchao", "nf4": "bitsandbytes"}
_BYTES = {"int8": 1.0, "nf4": 0.5 + 4 / 64}  # of a number; NF4 has a float32 scale for each 64
KINDS = ("none", *_LIBRARIES)


@dataclass(frozen=True)
class Quantization:
    """How the weights of the linear layers, the output matrix aside, are held.

    The output matrix stays: it may be tied to the embedding, and it decides which of two near tokens is the first.
    """

    kind: str = "none"

    def __post_init__(self) -> None:
        """Raises `UsageError` for another kind, and where the library is not installed."""
        if self.kind not in KINDS:
            raise UsageError(f"quantize is {self.kind!r}; expected one of {', '.join(KINDS)}")
        if self and find_spec(_LIBRARIES[self.kind]) is None:
            raise UsageError(
                f"quantize={self.kind} needs {_LIBRARIES[self.kind]}; install it: pip install 'multitoken[quantize]'"
            )

    def __bool__(self) -> bool:
        return self.kind != "none"

    def spared(self, config: PreTrainedConfig, dtype: torch.dtype, trust_remote_code: bool) -> int:
        """Bytes that a model of this config takes less than in `dtype`. Raises `UsageError` for one that cannot be quantised."""
        if not self:
            return 0
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
        if self.kind == "nf4" and Mixers.of(model) is not None:
            raise UsageError(
                f"quantize=nf4 is not for {type(model).__name__}: kernels of its recurrent layers read weights themselves, and "
                "these would be packed; use quantize=int8"
            )
        head = model.get_output_embeddings()
        numbers = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear) and m is not head)
        if not numbers:
            raise UsageError(
                f"quantize={self.kind} is not for {type(model).__name__}: none of its layers is a torch.nn.Linear"
            )
        return int(numbers * (dtype.itemsize - _BYTES[self.kind]))

    def for_transformers(self, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
        """Arguments of from_pretrained, which packs every weight as it is read, on this device unless a device_map says otherwise."""
        where = {"device_map": {"": str(device)}}
        if self.kind == "nf4":
            config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
            return where | {"quantization_config": config}
        if self.kind == "int8":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of kernels for other machines
                from torchao.quantization import Int8WeightOnlyConfig
            return where | {"quantization_config": TorchAoConfig(Int8WeightOnlyConfig())}
        return {}

    def finish(self, model: PreTrainedModel) -> None:
        """What a model that was just read still needs. Raises `UsageError` for one that is spread over several devices."""
        if self.kind != "nf4":
            return
        if len(set((getattr(model, "hf_device_map", None) or {}).values())) > 1:
            raise UsageError(
                "quantize=nf4 needs the model on one device, found a device_map over several; leave device_map out"
            )
        for layer in model.modules():
            # The kernel for CPUs computes in bfloat16 whatever the model is in, and only where nothing trains: two arithmetics.
            if hasattr(layer, "support_avx512bf16_for_cpu"):
                bits: Any = layer
                bits.support_avx512bf16_for_cpu = False
