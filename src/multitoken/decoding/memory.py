"""How much memory is free, and how many bytes a slot of the cache takes."""

import os
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import PreTrainedModel

_CGROUPS = Path("/sys/fs/cgroup")
_PROC = Path("/proc")


def available_memory(device: torch.device) -> int | None:
    """Bytes that can still be allocated on `device`, or None if the system does not report it."""
    if device.type == "cuda":
        # Memory that PyTorch has reserved but no tensor uses is taken for the driver, but free for us.
        reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + reserve
    if device.type == "mps":
        return max(0, torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory())
    if device.type != "cpu":
        return None
    limits = [*_of_machine(), *_of_container(_PROC, _CGROUPS)]
    return min(limits, default=None)


def _of_machine() -> Iterator[int]:
    try:
        for line in (_PROC / "meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                yield int(line.split()[1]) * 1024
    except OSError:  # not Linux
        if "SC_AVPHYS_PAGES" in os.sysconf_names:
            yield os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _of_container(proc: Path, cgroups: Path) -> Iterator[int]:
    """What each control group around this process leaves it, for cgroup versions 2 and 1. Cached file contents that the system
    can drop count as free."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            root, names = cgroups, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            root = cgroups / "memory"
        else:
            continue
        # Inside a container the path may be the host's. The container's own group is then the root of what it sees.
        here = root / path.lstrip("/")
        for folder in [here, *here.parents] if here.is_dir() else [root]:
            yield from _left_in(folder, *names)
            if folder == root:
                break


def _left_in(folder: Path, limit: str, usage: str, reclaimable: str) -> Iterator[int]:
    try:
        most, used = int((folder / limit).read_text()), int((folder / usage).read_text())
        counted = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no limit ("max"), or no such file
        return
    yield max(0, most - used + int(counted.get(reclaimable, 0)))


def slot_bytes(model: PreTrainedModel) -> int:
    """Bytes of one slot of the cache. Computed from the config alone, for use before there is a cache to measure."""
    config = model.config.get_text_config()
    layers = getattr(config, "per_layer_config", None)  # if layers differ
    of_layers = [layers[i] if layers else config for i in range(config.num_hidden_layers)]
    numbers = sum(_keys(layer) for layer in of_layers)
    return 2 * numbers * torch.finfo(model.dtype).bits // 8


def _keys(config: object) -> int:
    """How many numbers the keys of one token have at one layer. Recurrent layers are counted in the same way."""
    heads = getattr(config, "num_attention_heads", None) or 0
    size = getattr(config, "head_dim", None) or (getattr(config, "hidden_size", 0) // heads if heads else 0)
    return (getattr(config, "num_key_value_heads", None) or heads) * size
