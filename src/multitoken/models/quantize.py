"""8-bit weights for a frozen model, through torchao."""

import warnings

from torch import nn
from transformers import PreTrainedModel

from multitoken.errors import UsageError

KINDS = ("none", "int8")


def quantize_weights(model: PreTrainedModel, kind: str) -> None:
    """Hold the weights of the linear layers, the output matrix aside, in 8 bits a number, in place. "none": as they are.

    The output matrix stays: it may be tied to the embedding, and it decides which of two near tokens is the first.
    Raises `UsageError` for another kind, and where torchao is not installed.
    """
    if kind not in KINDS:
        raise UsageError(f"quantize is {kind!r}; expected one of {', '.join(KINDS)}")
    if kind == "none":
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of kernels for other machines
            from torchao.quantization import Int8WeightOnlyConfig, quantize_
    except ImportError as error:
        raise UsageError("quantize=int8 needs torchao; install it: pip install 'multitoken[quantize]'") from error
    head = model.get_output_embeddings()
    quantize_(model, Int8WeightOnlyConfig(), filter_fn=lambda m, _: isinstance(m, nn.Linear) and m is not head)
