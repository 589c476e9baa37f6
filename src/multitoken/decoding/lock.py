"""One step at a time: a model's gate and hooks are shared by all threads that decode with it."""

import threading
from typing import Any

from transformers import PreTrainedModel


class ModelLock:
    """A lock that the thread which holds it may take again. A copy of a model, deep or pickled, gets a fresh one."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[Any, ...]:
        return (ModelLock, ())


def lock_of(model: PreTrainedModel) -> ModelLock:
    """The lock of a model, held around each step and never between two, so that an abandoned stream holds none."""
    return model.__dict__.get("_mtp_lock") or model.__dict__.setdefault("_mtp_lock", ModelLock())
