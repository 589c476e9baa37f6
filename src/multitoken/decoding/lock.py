"""A lock that lets a model run one step at a time, because all threads that decode with it share its gate and hooks."""

import threading
from typing import Any

from transformers import PreTrainedModel


class ModelLock:
    """A reentrant lock. When a model is deep-copied or pickled, the copy gets a new lock."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[Any, ...]:
        return (ModelLock, ())


def lock_of(model: PreTrainedModel) -> ModelLock:
    """The lock of a model. It is held during each step and released between steps, so an abandoned stream never holds it."""
    return model.__dict__.get("_mtp_lock") or model.__dict__.setdefault("_mtp_lock", ModelLock())
