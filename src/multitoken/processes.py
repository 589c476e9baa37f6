"""The processes of one run, where a launcher (`torchrun`, `accelerate launch`) started several: which of them this is, and how they
share out work that is done piece by piece. Alone, everything here does nothing."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from rich.console import Console

T = TypeVar("T")
PATIENCE = timedelta(days=1)  # one may have hours more to do than another; a launcher ends all when one dies


@dataclass(frozen=True)
class Processes:
    """`number` processes, of which this is the one at `index`, counted from 0."""

    number: int = 1
    index: int = 0

    @classmethod
    def here(cls) -> "Processes":
        """As the launcher says."""
        return cls(int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0")))

    @property
    def first(self) -> bool:
        """The one that speaks and writes results."""
        return self.index == 0

    def mine(self, pieces: Sequence[T]) -> Sequence[T]:
        """Every `number`-th piece: neighbours tend to be alike, so all have as much to do."""
        return pieces[self.index :: self.number]

    def wait(self) -> None:
        """Until all are here."""
        self.gather(None)

    def gather(self, value: T) -> list[T]:
        """What each of them has, by index. All have to ask."""
        if self.number == 1:
            return [value]
        from torch import distributed

        if not distributed.is_initialized():
            distributed.init_process_group(timeout=PATIENCE)
        found: list[Any] = [None] * self.number
        distributed.all_gather_object(found, value)
        return found


def console_of(console: "Console | None", verbose: bool) -> "Console":
    """What a call speaks to: the console that it was given, or standard output; nobody where it is not to, or not the first process."""
    from rich.console import Console

    return (console or Console()) if verbose and Processes.here().first else Console(quiet=True)


def local_index() -> int | None:
    """Which of the processes on this machine this is; None: no launcher started it."""
    return int(os.environ["LOCAL_RANK"]) if "LOCAL_RANK" in os.environ else None
