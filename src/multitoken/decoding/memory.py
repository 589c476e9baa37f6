"""How much memory is left for a cache, and what a slot of it takes."""

import os
from pathlib import Path

import torch
from transformers import PreTrainedModel


def available_memory(device: torch.device) -> int | None:
    """Bytes that could still be allocated on `device`; None where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu":
        return None
    limits = []
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                limits.append(int(line.split()[1]) * 1024)
    except OSError:  # not Linux
        if "SC_AVPHYS_PAGES" in os.sysconf_names:
            limits.append(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(limits, default=None)


def slot_bytes(model: PreTrainedModel) -> int:
    """Bytes of one slot of the cache, from the config alone: before there is a cache to measure."""
    config = model.config.get_text_config()
    layers = getattr(config, "per_layer_config", None)  # where layers are unlike
    of_layers = [layers[i] if layers else config for i in range(config.num_hidden_layers)]
    numbers = sum(_keys(layer) for layer in of_layers)
    return 2 * numbers * torch.finfo(model.dtype).bits // 8


def _keys(config: object) -> int:
    """Numbers in the keys of one token at one layer; of a recurrent layer they are counted all the same."""
    heads = getattr(config, "num_attention_heads", None) or 0
    size = getattr(config, "head_dim", None) or (getattr(config, "hidden_size", 0) // heads if heads else 0)
    return (getattr(config, "num_key_value_heads", None) or heads) * size
