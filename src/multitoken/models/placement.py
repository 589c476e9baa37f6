"""The device and type of a model: an accelerator if there is one, and a type that suits it. A model that is too large is refused
before loading."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any

import torch

from multitoken.decoding.memory import available_memory
from multitoken.errors import OutOfMemoryError, UsageError
from multitoken.processes import local_index

from .weights import Stored

logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_LARGE = 10**9  # parameters above which a float32 checkpoint is halved on an accelerator


def find_device(device: str | torch.device = "auto") -> torch.device:
    """The device of that name. auto: an accelerator if there is one; with several processes, the accelerator of this process.
    Raises `UsageError` for a device that does not exist."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if str(device) == "auto":
        if accelerator is None:
            return torch.device("cpu")
        if (index := local_index()) is None:
            return torch.device(accelerator.type)
        return torch.device(accelerator.type, index % torch.accelerator.device_count())
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise UsageError(f"device is {device!r}; expected auto, cpu, cuda, cuda:N, mps, xpu or xpu:N") from error
    if place.type == "cpu":
        return place
    if accelerator is None or accelerator.type != place.type:
        what = f"only {accelerator.type}" if accelerator is not None else "no accelerator"
        raise UsageError(f"device is {str(device)!r}, but torch sees {what}; use 'auto' or 'cpu'")
    count = torch.accelerator.device_count()
    if place.index is not None and place.index >= count:
        raise UsageError(f"device is {str(device)!r}, but there are {count} of them, from {place.type}:0 on")
    return place


@cache
def cpu_gains_by_bf16() -> bool:
    """Whether this CPU multiplies matrices faster in bfloat16 than in float32. Both are timed for a few milliseconds: a CPU
    without such instructions takes twenty times as long."""
    seconds: dict[torch.dtype, float] = {}
    for dtype in (torch.float32, torch.bfloat16):
        matrix = torch.ones(256, 256, dtype=dtype)
        torch.mm(matrix, matrix)  # the first call includes setup
        times = []
        for _ in range(8):
            started = time.perf_counter()
            torch.mm(matrix, matrix)
            times.append(time.perf_counter() - started)
        seconds[dtype] = min(times)  # the minimum, because other work on the machine only adds time
    return seconds[torch.bfloat16] < seconds[torch.float32]


def say_if_slow(dtype: torch.dtype, device: torch.device) -> None:
    """Log a warning if a model is to compute in a type that is slow on this CPU."""
    if dtype == torch.bfloat16 and device.type == "cpu" and not cpu_gains_by_bf16():
        logger.warning("this CPU computes more slowly in bfloat16 than in float32: leave dtype at auto")


def find_dtype(
    dtype: torch.dtype | str, device: torch.device, tensors: Sequence[Stored] = (), name: str = "the model"
) -> torch.dtype:
    """The type of that name. auto: float32 on a CPU; elsewhere the checkpoint's own type, but bfloat16 for more than a billion
    float32 numbers. Raises `UsageError` for an invalid type."""
    if isinstance(dtype, str) and dtype != "auto":
        if dtype not in DTYPES:
            raise UsageError(f"dtype is {dtype!r}; expected one of auto, {', '.join(DTYPES)}")
        return _checked(DTYPES[dtype], device)
    if isinstance(dtype, torch.dtype):
        return _checked(dtype, device)
    if device.type == "cpu":
        return torch.float32
    sizes: dict[torch.dtype, int] = {}
    for tensor in tensors:
        if (stored := tensor.torch_dtype) is not None:
            sizes[stored] = sizes.get(stored, 0) + prod(tensor.shape)
    own = max(sizes, key=lambda kind: sizes[kind], default=torch.float32)
    if own in (torch.float32, torch.float64):
        if sum(sizes.values()) <= _LARGE or not has_bf16(device):
            return torch.float32
        logger.warning(
            "%s: its float32 weights are held in bfloat16 on %s; dtype='float32' keeps them in float32", name, device
        )
        return torch.bfloat16
    if own == torch.bfloat16 and not has_bf16(device):
        logger.warning("%s: %s has no bfloat16, so its weights are held in float32", name, device)
        return torch.float32
    return own


def _checked(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    if not dtype.is_floating_point:
        raise UsageError(f"dtype is {dtype}; expected one of auto, {', '.join(DTYPES)}")
    if (dtype == torch.bfloat16 and not has_bf16(device)) or (dtype == torch.float64 and device.type == "mps"):
        raise UsageError(f"dtype is {dtype}, which {device} does not have; use float16 or float32")
    return dtype


def has_bf16(device: torch.device) -> bool:
    return device.type != "cuda" or torch.cuda.is_bf16_supported()


@dataclass(frozen=True)
class Placement:
    """Where a model goes. `device_map` None: all of it on `device`. `options`: max_memory and offload_folder, as in
    transformers."""

    device: torch.device
    device_map: str | Mapping[str, Any] | None = None
    options: Mapping[str, Any] | None = None

    def for_transformers(self) -> dict[str, Any]:
        """Arguments for from_pretrained, which puts every tensor on its device as it is read."""
        if self.device_map is not None:
            return {"device_map": self.device_map, **(self.options or {})}
        return {} if self.device.type == "cpu" else {"device_map": {"": str(self.device)}}

    def check_room(self, tensors: Sequence[Stored], dtype: torch.dtype, name: str, spared: int = 0) -> None:
        """Raises `OutOfMemoryError` if the weights alone, minus `spared` bytes, need more memory than is free. (With a
        device_map, accelerate fits the model itself.)"""
        free = available_memory(self.device)
        if self.device_map is not None or free is None:
            return
        needed = bytes_in(tensors, dtype) - spared
        if needed <= free:
            return
        half = bytes_in(tensors, torch.bfloat16)
        fits = [f"dtype='bfloat16' takes {_gb(half)}"] if half < needed and half <= free else []
        raise OutOfMemoryError(
            f"{name} takes {_gb(needed)} in {str(dtype).removeprefix('torch.')}, and {self.device} has {_gb(free)} left; "
            + "; ".join(
                [*fits, "device_map='auto' spreads it over all devices and the disk; or choose a smaller model"]
            )
        )


def bytes_in(tensors: Sequence[Stored], dtype: torch.dtype) -> int:
    """The size of the tensors in bytes, with floating-point numbers in that type."""
    return sum(
        prod(tensor.shape) * dtype.itemsize if tensor.torch_dtype is not None else tensor.end - tensor.start
        for tensor in tensors
    )


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
