"""How much memory a piece of work takes at its peak, and how much is free."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil
import torch

from multitoken.decoding.memory import available_memory

_SECONDS = 0.01  # between two readings of the resident size


@dataclass
class Peak:
    """Bytes above what was held when the measurement began."""

    bytes: int = 0


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Peak]:
    """Peak memory inside the context. On a GPU: what torch allocated. On a CPU: the growth of the process's resident
    size, read every 10 ms."""
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
    """Bytes that can still be allocated."""
    free = available_memory(device)
    return psutil.virtual_memory().available if free is None else free


def bytes_of(tensors: Iterator[torch.Tensor]) -> int:
    """Bytes of all these tensors. Shared memory counts once."""
    sizes = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(sizes.values())
