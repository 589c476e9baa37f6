"""Training without denormals: numbers below 1.2e-38, which float32 stores with fewer and fewer digits.

A confident model gives most tokens such probabilities, and its gradients are full of them. A processor may take a
hundred cycles for each operation on one: on an Intel Xeon they took two thirds of a training step. Replacing them with
zero changes nothing that a sum of floats would show. How a processor treats denormals is a setting of each thread.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

_SMALLEST = torch.finfo(torch.float32).tiny


@contextmanager
def flushed_denormals() -> Iterator[None]:
    """Replace denormals with zeros, on CPUs that can, in this thread and in the threads that torch computes with."""
    before = are_flushed()
    _flush_in_all_threads(True)
    try:
        yield
    finally:
        _flush_in_all_threads(before)


def are_flushed() -> bool:
    """Whether denormals are replaced with zeros in this thread."""
    return bool(torch.full((1,), _SMALLEST) * 0.5 == 0)


def _flush_in_all_threads(flush: bool) -> None:
    torch.set_flush_denormal(flush)
    # OpenMP's threads keep the setting they started with, and torch sets only the calling one: each must set its own.
    for library in (Path(torch.__file__).parent / "lib").glob("libgomp*"):
        in_parallel = getattr(ctypes.CDLL(str(library)), "GOMP_parallel", None)
        if in_parallel is not None:
            each = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: torch.set_flush_denormal(flush) and None)
            in_parallel(each, None, torch.get_num_threads(), 0)
