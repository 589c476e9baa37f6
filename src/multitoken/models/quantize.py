"""Weights of a frozen model in 8 bits (torchao) or 4 bits (bitsandbytes' NF4, arXiv 2305.14314), quantized as they are read."""

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
_BYTES = {"int8": 1.0, "nf4": 0.5 + 4 / 64}  # per number; NF4 has a float32 scale for each 64 numbers
KINDS = ("none", *_LIBRARIES)


@dataclass(frozen=True)
class Quantization:
    """How the weights of the linear layers, except the output matrix, are held.

    The output matrix is not quantized: it may be tied to the embedding, and it decides which of two close tokens comes first.
    """

    kind: str = "none"

    def __post_init__(self) -> None:
        """Raises `UsageError` for an unknown kind, and if the library is not installed."""
        if self.kind not in KINDS:
            raise UsageError(f"quantize is {self.kind!r}; expected one of {', '.join(KINDS)}")
        if self and find_spec(_LIBRARIES[self.kind]) is None:
            raise UsageError(
                f"quantize={self.kind} needs {_LIBRARIES[self.kind]}; install it: pip install 'multitoken[quantize]'"
            )

    def __bool__(self) -> bool:
        return self.kind != "none"

    def spared(self, config: PreTrainedConfig, dtype: torch.dtype, trust_remote_code: bool) -> int:
        """The bytes that quantization saves compared with `dtype`. Raises `UsageError` for a model that cannot be quantized."""
        if not self:
            return 0
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
        if self.kind == "nf4" and Mixers.of(model) is not None:
            raise UsageError(
                f"quantize=nf4 does not work with {type(model).__name__}: kernels of its recurrent layers read weights directly, "
                "and these would be packed; use quantize=int8"
            )
        head = model.get_output_embeddings()
        numbers = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear) and m is not head)
        if not numbers:
            raise UsageError(
                f"quantize={self.kind} does not work with {type(model).__name__}: none of its layers is a torch.nn.Linear"
            )
        return int(numbers * (dtype.itemsize - _BYTES[self.kind]))

    def for_transformers(self, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
        """Arguments for from_pretrained, which packs every weight as it is read, on this device unless a device_map says
        otherwise."""
        where = {"device_map": {"": str(device)}}
        if self.kind == "nf4":
            config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
            return where | {"quantization_config": config}
        if self.kind == "int8":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about kernels for other machines
                from torchao.quantization import Int8WeightOnlyConfig
            return where | {"quantization_config": TorchAoConfig(Int8WeightOnlyConfig())}
        return {}

    def finish(self, model: PreTrainedModel) -> None:
        """Finish a model that was just read. Raises `UsageError` for an nf4 model that is spread over several devices."""
        if self.kind != "nf4":
            return
        if len(set((getattr(model, "hf_device_map", None) or {}).values())) > 1:
            raise UsageError(
                "quantize=nf4 needs the model on one device, found a device_map over several; leave device_map out"
            )
        for layer in model.modules():
            # The CPU kernel always computes in bfloat16, and only when nothing is trained. The results would differ between the two.
            if hasattr(layer, "support_avx512bf16_for_cpu"):
                bits: Any = layer
                bits.support_avx512bf16_for_cpu = False
