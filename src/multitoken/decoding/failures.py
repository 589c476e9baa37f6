"""The errors of decoding.

The base class of all errors of this project is here too, because `decoding/` imports nothing from the rest of it.
"""

from collections.abc import Mapping, Sequence
from typing import Any


class MultitokenError(Exception):
    """A mistake or a limit that the user can do something about. The command line prints it without a traceback."""

    exit_code = 1


class DecodingError(MultitokenError, ValueError):
    """A prompt, option or model state that cannot be decoded. The message names the value and the fix."""

    exit_code = 2


class RowsFailed(DecodingError):
    """Some rows of a call failed, and the others are done.

    errors: the errors by row. answers: if the call returns answers, those of the other rows, in the order of the
    prompts, with None for each row that failed. (Chunks were already yielded as they came.)
    """

    def __init__(self, errors: Mapping[int, DecodingError]) -> None:
        row, error = min(errors.items())
        more = f" (other rows that failed: {len(errors) - 1})" if len(errors) > 1 else ""
        super().__init__(f"row {row}: {error}{more}")
        self.errors = dict(errors)
        self.answers: Sequence[Any] = ()
