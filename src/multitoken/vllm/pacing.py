"""How many masks each request of a server feeds: `decoding/pace.py`, with the times that a sampler can measure.

A step's time is the time between two calls of the sampler, including prompts that ran in it. The more tokens a step
writes, the more often a request ends and a prompt takes its place, so leaving these steps out would favour many masks.
"""

import time
from collections.abc import Sequence

from multitoken.decoding.pace import Pace, Record


class Pacer:
    """Observes a server's steps and decides how many masks each request gets whose tokens are verified."""

    def __init__(self, places: int) -> None:
        self._pace = Pace(places)
        self._records: dict[str, Record] = {}
        self._fed: dict[str, int] = {}  # masks of the block that a request's drafts come from
        self._names: frozenset[str] = frozenset()  # the requests of the step before
        self._begun = 0.0
        self._seconds: float | None = None

    def clock(self, names: Sequence[str]) -> None:
        """Called when a step of these requests is sampled. If none of them was in the step before, the server may have
        been idle, so the time is not used."""
        now, fresh = time.perf_counter(), frozenset(names)
        self._seconds = None if fresh.isdisjoint(self._names) else now - self._begun
        self._names, self._begun = fresh, now

    def masks(
        self, names: Sequence[str], tokens: int, held: Sequence[int] | None, good: Sequence[int] | None
    ) -> list[int]:
        """Masks of each request for the next step. tokens: emitted in this step. held: confirmed drafts of each
        request. good: masks of each request whose block can be used. None: no request fed any."""
        if held is not None:
            for name, number in zip(names, held, strict=True):
                if fed := self._fed.get(name):
                    self._record(name).settle(fed, number)
        self._fed = dict(zip(names, good, strict=True)) if good is not None else {}
        self._pace.observe(len(names), tokens, self._seconds)
        records = [self._record(name) for name in names]
        if len(self._records) > 4 * len(names) + 64:  # includes requests that have ended
            self._records = dict(zip(names, records, strict=True))
        return self._pace.masks(records)

    def _record(self, name: str) -> Record:
        return self._records.setdefault(name, Record())
