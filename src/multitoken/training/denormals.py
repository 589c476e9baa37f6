"""Training without denormals: numbers below 1.2e-38, which float32 holds with fewer and fewer digits.

A confident model gives most tokens such probabilities, and its gradients are full of them. A processor may take a hundred cycles for
each of its operations on one: on an Intel Xeon two thirds of a training step went into them. Zero in their place changes nothing that
a sum of floats would show. How a processor treats them is a setting of each thread.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

_SMALLEST = torch.finfo(torch.float32).tiny


@contextmanager
def flushed_denormals() -> Iterator[None]:
    """Zeros in the place of denormals, on CPUs that can, in this thread and in those that torch computes with."""
    before = are_flushed()
    _flush_in_all_threads(True)
    try:
        yield
    finally:
        _flush_in_all_threads(before)


def are_flushed() -> bool:
    """In this thread."""
    return bool(torch.full((1,), _SMALLEST) * 0.5 == 0)


def _flush_in_all_threads(flush: bool) -> None:
    torch.set_flush_denormal(flush)
    # Threads that OpenMP has begun keep what they began with, and torch sets this one alone: have each of them set its own.
    for library in (Path(torch.__file__).parent / "lib").glob("libgomp*"):
        in_parallel = getattr(ctypes.CDLL(str(library)), "GOMP_parallel", None)
        if in_parallel is not None:
            each = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: torch.set_flush_denormal(flush) and None)
            in_parallel(each, None, torch.get_num_threads(), 0)
