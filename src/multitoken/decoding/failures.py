"""What can go wrong in decoding. The root of all errors of this project stands here, for `decoding/` imports nothing else of it."""

from collections.abc import Mapping, Sequence
from typing import Any


class MultitokenError(Exception):
    """A mistake or a limit that a person can do something about. The command line prints it without a traceback."""

    exit_code = 1


class DecodingError(MultitokenError, ValueError):
    """A prompt, option or model state that cannot be decoded. The message names the value and the mend."""

    exit_code = 2


class RowsFailed(DecodingError):
    """Some rows of a call failed, and the others are done. `errors` by row; `answers` has those of the others, in the order of
    the prompts, with None for one that failed, where the call returns answers (chunks were given out as they came)."""

    def __init__(self, errors: Mapping[int, DecodingError]) -> None:
        row, error = min(errors.items())
        more = f" (so did {len(errors) - 1} more rows)" if len(errors) > 1 else ""
        super().__init__(f"row {row}: {error}{more}")
        self.errors = dict(errors)
        self.answers: Sequence[Any] = ()
