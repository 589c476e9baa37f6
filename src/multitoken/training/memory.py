"""How much memory a stretch of work takes at its height, and how much there is."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil
import torch

from multitoken.decoding.memory import available_memory

_SECONDS = 0.01  # between two looks at the resident size


@dataclass
class Peak:
    """Bytes above what was held when the stretch began."""

    bytes: int = 0


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Peak]:
    """On a GPU, what torch allocated; on a CPU, the growth of the process's resident size, looked at every 10 ms."""
    peak = Peak()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        try:
            yield peak
        finally:
            peak.bytes = torch.cuda.max_memory_allocated(device) - before
        return
    process, done = psutil.Process(), threading.Event()
    before = process.memory_info().rss

    def watch() -> None:
        while not done.wait(_SECONDS):
            peak.bytes = max(peak.bytes, process.memory_info().rss - before)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()
        peak.bytes = max(peak.bytes, process.memory_info().rss - before)


def free_memory(device: torch.device) -> int:
    """Bytes that can still be taken."""
    free = available_memory(device)
    return psutil.virtual_memory().available if free is None else free


def bytes_of(tensors: Iterator[torch.Tensor]) -> int:
    """Of all of them, shared memory once."""
    sizes = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(sizes.values())
