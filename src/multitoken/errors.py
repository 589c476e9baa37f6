"""All errors, as one small tree. Every message names the value, what was expected and how to fix it.

    MultitokenError                 exit code 1
    ├── DecodingError               exit code 2: a prompt or option that cannot be decoded; also a ValueError
    │   └── RowsFailed              some answers of a call failed; the error holds the others
    ├── UsageError                  exit code 2: an invalid option or argument
    ├── DataError                   training or evaluation data
    ├── ModelError                  a model or checkpoint that cannot be used
    │   └── UnsupportedModelError   a family or state that would decode wrongly: refused
    ├── OutputError                 a folder in use, a full disk
    └── OutOfMemoryError            a run too large for its machine

The root and its first branch are defined in `decoding/failures.py`, because `decoding/` imports nothing from the rest of the
package.
"""

import difflib
from collections.abc import Iterable

from multitoken.decoding.failures import DecodingError, MultitokenError, RowsFailed

__all__ = [
    "DataError",
    "DecodingError",
    "ModelError",
    "MultitokenError",
    "OutOfMemoryError",
    "OutputError",
    "RowsFailed",
    "UnsupportedModelError",
    "UsageError",
    "nearest",
]


class UsageError(MultitokenError):
    """An invalid option or argument."""

    exit_code = 2


class DataError(MultitokenError):
    """Training or evaluation data that cannot be used."""


class ModelError(MultitokenError):
    """A model or checkpoint that cannot be used."""


class UnsupportedModelError(ModelError):
    """A model that would decode wrongly or cannot take a mask token."""


class OutputError(MultitokenError):
    """An output that cannot be written."""


class OutOfMemoryError(MultitokenError):
    """A run too large for its machine."""


def nearest(word: str, valid: Iterable[str]) -> str:
    """`"; did you mean 'steps'?"`, or the list of valid words: the end of a message about an unknown word."""
    options = sorted(valid)
    close = difflib.get_close_matches(word, options, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else f"; valid: {', '.join(options)}"
