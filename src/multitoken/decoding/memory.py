"""How much memory is left, and what a slot of the cache takes."""

import os
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import PreTrainedModel

_CGROUPS = Path("/sys/fs/cgroup")
_PROC = Path("/proc")


def available_memory(device: torch.device) -> int | None:
    """Bytes that could still be allocated on `device`; None where the system does not say."""
    if device.type == "cuda":
        # What PyTorch holds in reserve, for no tensor at present, is taken to the driver and free to us.
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
    """What each control group around this process leaves it, of version 2 and of version 1. Files that were read and may be
    forgotten count as free."""
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
        # Inside a container the path may be the host's: its own group is then the root of what it sees.
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
