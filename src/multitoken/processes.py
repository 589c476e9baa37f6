"""The processes of one run, where a launcher (`torchrun`, `accelerate launch`) started several: which one this is, and how they
divide work that is done piece by piece. With a single process, everything here does nothing."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from rich.console import Console

T = TypeVar("T")
# One process may have hours more work than another. If one dies, the launcher stops all of them.
PATIENCE = timedelta(days=1)


@dataclass(frozen=True)
class Processes:
    """`number` processes, of which this is the one at `index`, counted from 0."""

    number: int = 1
    index: int = 0

    @classmethod
    def here(cls) -> "Processes":
        """What the launcher set in the environment."""
        return cls(int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0")))

    @property
    def first(self) -> bool:
        """Whether this is the process that prints messages and writes results."""
        return self.index == 0

    def mine(self, pieces: Sequence[T]) -> Sequence[T]:
        """Every `number`-th piece. Neighbouring pieces tend to be alike, so all processes get the same amount of work."""
        return pieces[self.index :: self.number]

    def wait(self) -> None:
        """Wait until all processes have called this."""
        self.gather(None)

    def gather(self, value: T) -> list[T]:
        """The value of each process, by index. All processes have to call this."""
        if self.number == 1:
            return [value]
        from torch import distributed

        if not distributed.is_initialized():
            distributed.init_process_group(timeout=PATIENCE)
        found: list[Any] = [None] * self.number
        distributed.all_gather_object(found, value)
        return found


def console_of(console: "Console | None", verbose: bool) -> "Console":
    """The console that a call prints to: the given one, or standard output. It is quiet without `verbose`, and in all but the
    first process."""
    from rich.console import Console

    return (console or Console()) if verbose and Processes.here().first else Console(quiet=True)


def local_index() -> int | None:
    """The index of this process among those on this machine; None if no launcher started it."""
    return int(os.environ["LOCAL_RANK"]) if "LOCAL_RANK" in os.environ else None
