"""A model with random weights and few layers, made from a config: enough to test whether a model could be used before its
weights are downloaded."""

from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from multitoken.decoding.memory import available_memory
from multitoken.errors import ModelError, UsageError

_VOCABULARY = 1024
_EXPERTS = 32
_EXPERT_FIELDS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


def cut(config: PreTrainedConfig) -> PreTrainedConfig:
    """The config with just enough layers to have one of every kind, a small vocabulary and few experts. Widths stay the same."""
    text = config.get_text_config()
    values = text.to_dict()
    count = int(text.num_hidden_layers)
    layers = min(count, _layers_that_show_all(values, count))
    for name, value in values.items():
        if isinstance(value, list) and len(value) == count:
            values[name] = value[:layers]
        elif name in _EXPERT_FIELDS and isinstance(value, int):
            values[name] = min(value, _EXPERTS)
        elif name.startswith("vocab_size") and isinstance(value, int):
            values[name] = min(value, _VOCABULARY)
        elif name.endswith("_token_id"):
            values[name] = None
    if isinstance(values.get("per_layer_config"), dict):
        values["per_layer_config"] = {k: v for k, v in values["per_layer_config"].items() if int(k) < layers}
    for name in ("num_hidden_layers", "n_layer", "n_layers", "num_layers"):
        if values.get(name) == count:
            values[name] = layers
    for name in ("architectures", "quantization_config", "torch_dtype", "dtype"):
        values.pop(name, None)
    try:
        return type(text).from_dict(values)
    except Exception as error:  # strict configs raise their own kinds of errors
        raise ModelError(f"the config of {config.model_type} cannot be cut to {layers} layers: {error}") from error


def _layers_that_show_all(values: dict[str, Any], count: int) -> int:
    most = 2
    for name, value in values.items():
        if isinstance(value, list) and len(value) == count and count:
            kinds = {str(kind) for kind in value}
            most = max(most, *(next(i for i, kind in enumerate(value) if str(kind) == wanted) + 1 for wanted in kinds))
        elif isinstance(value, list) and value and name.endswith(("_indices", "_layers")):
            most = max([most, *(int(i) + 1 for i in value[:1] if isinstance(i, int))])
        elif isinstance(value, int) and name.endswith(("_period", "_interval", "_step", "first_k_dense_replace")):
            most = max(most, value + 1) if value < count else most
    return most


@torch.no_grad()
def random_model(config: PreTrainedConfig, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """A model in float32 and eval mode. Its weights have a large enough spread that errors show. Raises `UsageError` if it does
    not fit in the machine's memory."""
    small = cut(config)
    with torch.device("meta"):
        shape: Any = AutoModelForCausalLM.from_config(small, trust_remote_code=trust_remote_code)
    needed = 4 * sum(parameter.numel() for parameter in shape.parameters())
    free = available_memory(torch.device("cpu"))
    if free is not None and needed > 0.8 * free:
        raise UsageError(
            f"{small.num_hidden_layers} layers of {config.model_type} take {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are "
            "free; check it on a larger machine, or with its weights in a smaller type"
        )
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(small, dtype=torch.float32, trust_remote_code=trust_remote_code)
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2 and "norm" not in name.lower() and "A_log" not in name:
            parameter.normal_(0, 2 / parameter.shape[-1] ** 0.5)
    return model.eval()
