"""The batched engine: rows join and leave between steps, and every row accepts its own number of tokens.

Rows that have started share one forward pass, padded to one width. Prompts are prefilled in pieces, in a separate pass,
so that a long prompt does not widen everyone's step. The lines of the cache are in the order of the rows: first those
that have started, then those whose prompts are still being prefilled.
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

_SLOTS = 128  # the cache grows in multiples of this many slots
_SHARE = 0.8  # share of the memory free at the start of an engine that the cache may take


class Engine:
    """Decodes any number of requests with one model, `max_rows` at a time.

    max_cache_bytes: the most memory that the cache may take; 80% of the free memory if not given. prefill_tokens: the
    most prompt tokens in one pass. pace: chooses how many masks and branches are fed. It acts only on policies that
    verify, so the output is the same.
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
        """The number of rows that have a line of the cache."""
        return len(self._rows)

    def add(self, request: Request) -> int:
        """Queue a request. Returns its number, which its chunks carry."""
        number = self._number
        self._number += 1
        self._waiting.append(Row(number, request))
        return number

    def cancel(self, number: int) -> None:
        """Drop a request, whether it waits or runs. It is not an error if the request is already gone."""
        self._waiting = deque(row for row in self._waiting if row.number != number)
        self._keep([row for row in self._rows if row.number != number])

    def step(self) -> list[Chunk]:
        """Let waiting rows join, run their prompts and run everyone's next step: at most two forward passes.

        A row that fails is removed and its error put in `failed`; the others go on. If another thread runs a step of
        the same model, this one waits for it.
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
        """Make the engine usable after `step` has raised: drop the rows that have lines, whose state is unknown, and
        the cache. Returns the numbers of these rows. Requests that are waiting stay."""
        lost = [row.number for row in self._rows]
        self._rows = []
        self._batch.cache = SlotCache(self._batch.model)
        return lost

    def run(self) -> Iterator[Chunk]:
        """Run steps until nothing is left to do."""
        while self.busy:
            yield from self.step()

    def _admit(self) -> None:
        """Give lines to waiting rows, in order of arrival, as long as `max_rows` and memory allow."""
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
        # Prompts of similar length are prefilled together with little padding.
        for row in sorted(joined, key=lambda row: len(row.ids)):
            row.place = self._joined
            self._joined += 1
            self._rows.append(row)

    def _does_not_fit(self, rows: list[Row]) -> str | None:
        """Why a cache for these rows, all at their maximum length, is too large. None if it is not."""
        if self._max_bytes is None:
            return None
        slots = max(row.most_slots(self._paced_branches) for row in rows)
        cache = self._batch.cache
        slot = cache.slot_bytes() or slot_bytes(self._batch.model)
        needed = len(rows) * (_up(slots) * slot + cache.line_bytes())
        if needed <= self._max_bytes:
            return None
        return (
            f"the cache for {len(rows)} rows of {slots} tokens takes {needed / 1e9:.2f} GB, more than its limit of "
            f"{self._max_bytes / 1e9:.2f} GB; ask for fewer new tokens or give the cache more memory"
        )

    def _prefill(self, first: int) -> list[Chunk]:
        """One pass over prompts: as many of the first ones as `prefill_tokens` allows, or a piece of a longer one."""
        joining = self._rows[first:]
        if not joining:
            return []
        # A pass covers neighbouring lines. Start at the row that has waited longest: when a row leaves, a later one may
        # move in front of it.
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
        """One pass over all rows that have started, padded to one width. Masks fill the room left by a row's drafts."""
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
        """The pace of these rows, if any. Only policies whose output is the same for any number of masks are paced."""
        return self._pace if all(row.policy.verifies and row.request.adaptive for row in rows) else None

    def _branches_of(self, row: Row, paced: int) -> tuple[Branch, ...]:
        """The branches to feed for a row.

        There are none for a model without a mask token, with recurrent layers or with compiled layers, where processors
        look at the text before a token, and for sampling without a draft head.
        """
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
        """Make room for all rows and `slots` slots.

        A cache that grows is doubled, so that a long answer copies it only a few times. It never has more slots than
        these rows may need, nor more lines than memory has room for. If many short rows and a few long ones follow each
        other, the lines of the former times the slots of the latter may be too much. The cache then shrinks to these rows.
        """
        # The compiler treats a cache of one line as a separate case.
        cache, rows = self._batch.cache, max(len(self._rows), 1 if self._batch.compiled is None else 2)
        if rows <= cache.lines and slots <= cache.capacity:
            return
        most = max(slots, _up(max(row.most_slots(self._paced_branches) for row in self._rows)))
        if slots > cache.capacity:
            slots = max(slots, min(2 * cache.capacity, most))
        lines = rows
        if rows > cache.lines and (size := cache.slot_bytes()) is not None:
            room = (
                2 * cache.lines if self._max_bytes is None else self._max_bytes // (max(slots, cache.capacity) * size)
            )
            lines = max(rows, min(2 * cache.lines, self._max_rows, room))
        line_bytes = max(slots, cache.capacity) * (cache.slot_bytes() or 0) + cache.line_bytes()
        if self._max_bytes is not None and max(lines, cache.lines) * line_bytes > self._max_bytes:
            cache.resize(rows, most)
        else:
            cache.grow(lines, slots)

    def _keep(self, rows: list[Row]) -> None:
        """Keep these rows, those that have started first. A line moves only to the place of one that is gone, or across
        the border between the rows that have started and the others."""
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
