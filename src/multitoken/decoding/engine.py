"""The batched engine: rows join and leave between steps, and every row accepts its own count.

Rows that have started share one forward pass of one padded width; prompts prefill beside them, in chunks, in a pass of
their own, so that a long prompt does not widen everyone's step. Lines of the cache are kept in the rows' order: those that
have started, then those that still prefill.
"""

import sys
import time
from collections import deque
from collections.abc import Iterator

from transformers import PreTrainedModel

from .attention import AttentionRule
from .branches import Branch
from .cache import SlotCache
from .compiled import CompiledLayers
from .draft_head import Drafter
from .failures import DecodingError
from .lock import lock_of
from .memory import available_memory, slot_bytes
from .pace import Pace
from .records import Chunk
from .row import Request, Row
from .step import Batch, Feed, step

_SLOTS = 128  # the cache grows in blocks of so many
_SHARE = 0.8  # of the memory that is left when an engine starts, the cache may take


class Engine:
    """Decodes any number of requests with one model, `max_rows` at a time.

    max_cache_bytes: what the cache may take; 80% of what is free if not given. prefill_tokens: the most prompt tokens of a
    pass. pace: chooses how many masks and branches are fed; verified policies only, so the output is the same.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        mask_id: int | None,
        rule: AttentionRule,
        max_positions: int | None = None,
        max_rows: int = 64,
        max_cache_bytes: int | None = None,
        prefill_tokens: int = 2048,
        pace: Pace | None = None,
        drafter: Drafter | None = None,
        compiled: CompiledLayers | None = None,
    ) -> None:
        self._batch = Batch(model, mask_id, rule, SlotCache(model), drafter, compiled)
        self._max_positions = max_positions
        self._max_rows = max_rows
        self._prefill_tokens = prefill_tokens
        free = available_memory(model.device)
        self._max_bytes = max_cache_bytes if max_cache_bytes is not None else free and int(free * _SHARE)
        self._pace = pace if mask_id is not None else None
        self._paced_branches = 0 if self._pace is None else self._pace.most_branches
        self._waiting: deque[Row] = deque()
        self._rows: list[Row] = []
        self._number = 0
        self._joined = 0
        self.failed: dict[int, DecodingError] = {}

    @property
    def busy(self) -> bool:
        return bool(self._rows or self._waiting)

    @property
    def running(self) -> int:
        """Rows that have a line of the cache."""
        return len(self._rows)

    def add(self, request: Request) -> int:
        """Let a request wait for its turn. Returns the number that its chunks carry."""
        number = self._number
        self._number += 1
        self._waiting.append(Row(number, request))
        return number

    def cancel(self, number: int) -> None:
        """Drop a request, wherever it is; one that is gone already is no error."""
        self._waiting = deque(row for row in self._waiting if row.number != number)
        self._keep([row for row in self._rows if row.number != number])

    def step(self) -> list[Chunk]:
        """Let rows join, and run their prompts and everyone's next step: at most two forward passes.

        A row that fails leaves with its error in `failed`; the others go on. Another thread's step of the same model is
        waited for.
        """
        with lock_of(self._batch.model):
            self._admit()
            started = [row for row in self._rows if row.started]
            chunks = self._prefill(len(started))
            chunks += self._decode(started)
            for line, row in enumerate(self._rows):
                if row.error is not None:
                    self.failed[row.number] = row.error
                    self._batch.cache.clear(line)
            self._keep([row for row in self._rows if not row.done])
            return chunks

    def recover(self) -> list[int]:
        """To go on after `step` has raised: drop the rows that have lines, whose state nobody knows, and the cache with them.
        Returns their numbers; the requests that wait stay."""
        lost = [row.number for row in self._rows]
        self._rows = []
        self._batch.cache = SlotCache(self._batch.model)
        return lost

    def run(self) -> Iterator[Chunk]:
        """Steps until nothing is left to do."""
        while self.busy:
            yield from self.step()

    def _admit(self) -> None:
        """Give lines to waiting rows, in the order in which they came, for as long as rows and memory allow."""
        joined: list[Row] = []
        while self._waiting and len(self._rows) + len(joined) < self._max_rows:
            row = self._waiting[0]
            rows = [*self._rows, *joined, row]
            if problem := self._does_not_fit(rows):
                if len(rows) > 1:
                    break
                self._waiting.popleft()
                self.failed[row.number] = DecodingError(problem)
                continue
            joined.append(self._waiting.popleft())
        # Prompts of about one length prefill side by side with little padding.
        for row in sorted(joined, key=lambda row: len(row.ids)):
            row.place = self._joined
            self._joined += 1
            self._rows.append(row)

    def _does_not_fit(self, rows: list[Row]) -> str | None:
        """Why a cache for these rows, should all of them become as long as they may, is too large."""
        if self._max_bytes is None:
            return None
        slots = max(row.most_slots(self._paced_branches) for row in rows)
        cache = self._batch.cache
        slot = cache.slot_bytes() or slot_bytes(self._batch.model)
        needed = len(rows) * (_up(slots) * slot + cache.line_bytes())
        if needed <= self._max_bytes:
            return None
        return (
            f"the cache of {len(rows)} rows of {slots} tokens takes {needed / 1e9:.2f} GB, more than the "
            f"{self._max_bytes / 1e9:.2f} GB that it may have; ask for fewer new tokens or give it more memory"
        )

    def _prefill(self, first: int) -> list[Chunk]:
        """One pass over prompts: the first that wait, as many as `prefill_tokens` allows, or a piece of one that is longer."""
        joining = self._rows[first:]
        if not joining:
            return []
        # From the one that has waited longest: lines are neighbours, and a row that left may have put a later one in front.
        oldest = min(range(len(joining)), key=lambda i: joining[i].place)
        first, joining = first + oldest, joining[oldest:]
        part = 1
        while part < len(joining):
            widest = max(row.pending() for row in joining[: part + 1])
            if (part + 1) * widest > self._prefill_tokens:
                break
            part += 1
        pace = self._pace_of(self._rows[: first + part])
        pays = sys.maxsize if pace is None else pace.level(first + part).masks
        feeds = []
        for row in joining[:part]:
            pending = min(row.pending(), self._prefill_tokens)
            feeds.append(Feed(row, pending, min(pays, self._masks_of(row)) if pending == row.pending() else 0))
        return self._step(feeds, first)

    def _decode(self, started: list[Row]) -> list[Chunk]:
        """One pass over all rows that have started, of one width; where drafts leave room in it, masks fill it."""
        if not started:
            return []
        rooms, pace = [self._masks_of(row) for row in started], self._pace_of(started)
        wanted = rooms if pace is None else pace.masks([row.record for row in started])
        paced = 0 if pace is None else pace.level(len(started)).branches
        real = [row.pending() + len(row.drafts) for row in started]
        fed = zip(real, wanted, rooms, strict=True)
        width = max((n + min(want, room) for n, want, room in fed if want), default=0)
        feeds = []
        for row, n, room in zip(started, real, rooms, strict=True):
            masks = max(0, min(room, width - n))
            feeds.append(Feed(row, row.pending(), masks, self._branches_of(row, paced) if width else ()))
        return self._step(feeds, 0)

    def _pace_of(self, rows: list[Row]) -> Pace | None:
        """What paces these rows, if anything: only policies whose output does not depend on the number of masks are paced."""
        return self._pace if all(row.policy.verifies and row.request.adaptive for row in rows) else None

    def _branches_of(self, row: Row, paced: int) -> tuple[Branch, ...]:
        """None where a block's masks are not all that stands behind a row: in a recurrence, in compiled layers, and where each place
        is chosen by the text before it."""
        batch = self._batch
        if batch.mask_id is None or batch.cache.recurrent is not None or batch.compiled is not None:
            return ()
        if row.way is None or (batch.drafter is None and row.request.seed is not None):
            return ()
        return row.branches(self._max_positions, paced)

    def _masks_of(self, row: Row) -> int:
        return row.room_for_masks(self._max_positions) if self._batch.mask_id is not None else 0

    def _step(self, feeds: list[Feed], first: int) -> list[Chunk]:
        longest = max(feed.row.cached + feed.width for feed in feeds)
        self._batch.rule.grow(longest)
        self._grow_cache(_up(longest))
        if self._pace is None:
            return step(self._batch, feeds, first)
        begun = time.perf_counter()
        chunks = step(self._batch, feeds, first)
        spent = time.perf_counter() - begun
        for feed in feeds:
            if (block := feed.row.settled) is not None:
                feed.row.record.settle(block[0], block[2])
        pace = self._pace_of([feed.row for feed in feeds])
        if pace is not None and all(feed.row.started for feed in feeds):
            prompts = any(feed.pending > 1 for feed in feeds)
            tokens = sum(len(chunk.token_ids) for chunk in chunks)
            pace.observe(len(feeds), tokens, None if prompts else spent)
        return chunks

    def _grow_cache(self, slots: int) -> None:
        """Room for all rows and so many slots, and, so that a long answer copies the cache a few times only, twice what there was:
        never more slots than these rows may come to need, and no more lines than memory has."""
        # A compiler takes a cache of one line for a kind of its own.
        cache, rows = self._batch.cache, max(len(self._rows), 1 if self._batch.compiled is None else 2)
        if slots > cache.capacity:
            most = _up(max(row.most_slots(self._paced_branches) for row in self._rows))
            slots = max(slots, min(2 * cache.capacity, most))
        lines = rows
        if rows > cache.lines and (size := cache.slot_bytes()) is not None:
            room = (
                2 * cache.lines if self._max_bytes is None else self._max_bytes // (max(slots, cache.capacity) * size)
            )
            lines = max(rows, min(2 * cache.lines, self._max_rows, room))
        cache.grow(lines, slots)

    def _keep(self, rows: list[Row]) -> None:
        """Let these rows stay, those that have started in front. A line moves only into the place of one that is gone, or across
        the border between the two."""
        line_of = {row.number: line for line, row in enumerate(self._rows)}
        border = sum(row.started for row in rows)
        order: list[Row | None] = [None] * len(rows)
        homeless = []
        for row in rows:
            line = line_of[row.number]
            if line < len(rows) and row.started == (line < border):
                order[line] = row
            else:
                homeless.append(row)
        moves = {}
        for row in homeless:
            part = range(border) if row.started else range(border, len(rows))
            line = next(i for i in part if order[i] is None)
            order[line], moves[line] = row, line_of[row.number]
        self._batch.cache.move(moves)
        self._rows = [row for row in order if row is not None]


def _up(slots: int) -> int:
    return -(-slots // _SLOTS) * _SLOTS
