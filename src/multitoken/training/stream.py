"""Which sample, which anchors and which ks come at which point of training. They depend only on the seed and the position
in the stream, so a resumed run, several processes and accumulated gradients all see the same data."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from .encoding import Sample
from .joining import is_joined, join
from .packing import pack

_FIRST_K = 4  # the longest block at the start, where blocks grow
_WINDOW = 16  # steps whose rows are sorted by length together: less padding, still random


@dataclass(frozen=True)
class StreamOptions:
    """rows_per_step: rows of one optimizer step, over all processes and micro-batches.
    pack: put several samples into one row. A row is as long as the longest of all samples, so it takes no more memory than
        a row of one sample may take anyway.
    growth: share of the run over which the longest block grows to k_max.
    join_share: share of the steps whose rows are joined, up to join_room tokens (see `joining`). Not for packed rows.
    """

    seed: int
    rows_per_step: int
    blocks: int
    k_max: int
    fixed_k: bool = False
    growth: float = 0.0
    train_on: str = "response"
    pack: bool = False
    join_share: float = 0.0
    join_room: int = 0

    def longest(self, done: float) -> int:
        """The longest block of a step that begins when the share `done` of the run is over."""
        if done >= self.growth or self.k_max <= _FIRST_K:
            return self.k_max
        return _FIRST_K + int((self.k_max - _FIRST_K) * done / self.growth)


@dataclass(frozen=True)
class Row:
    """Samples next to each other: ids, the samples' lengths, the positions where anchors may be (each with the end of the
    turn that its next token belongs to), and for each id whether its text was sampled."""

    ids: list[int]
    lengths: list[int]
    end_of: dict[int, int]
    sampled: list[bool]

    @classmethod
    def of(cls, samples: list[Sample], train_on: str) -> "Row":
        ids: list[int] = []
        end_of: dict[int, int] = {}
        for sample in samples:
            start = len(ids)
            for first, end in sample.predictable(train_on):
                end_of |= {start + place: start + end for place in range(first - 1, end - 1)}
            ids += sample.ids
        sampled = [sample.sampled for sample in samples for _ in sample.ids]
        return cls(ids, [len(sample.ids) for sample in samples], end_of, sampled)

    def item(self, anchors: list[int], ks: list[int]) -> dict[str, Any]:
        """The row in the form that `collate` takes."""
        return {
            "ids": self.ids,
            "lengths": self.lengths,
            "places": list(self.end_of),
            "anchors": anchors,
            "ends": [self.end_of[anchor] for anchor in anchors],
            "ks": ks,
            "sampled": [int(self.sampled[anchor]) for anchor in anchors],
        }


class BlockStream(Dataset[dict[str, Any]]):
    """Item i is row `i % rows_per_step` of step `i // rows_per_step`: its token ids, the lengths of its samples, the
    positions where anchors may be (`places`), anchors [N] drawn from them, the end of each anchor's turn [N], whether its
    text was sampled [N], and ks [N].

    At an anchor, the *next* token is to be predicted. Its block may run up to the end of that token's turn. `progress` is
    the share of the run that is done, for runs given in minutes; otherwise the share follows from the step.
    """

    def __init__(
        self,
        samples: list[Sample],
        options: StreamOptions,
        steps: int,
        progress: Callable[[], float] | None = None,
    ) -> None:
        self.rows = _packed(samples) if options.pack else [[sample] for sample in samples]
        self.options = options
        self.steps = steps
        self._progress = progress
        self._order = lru_cache(maxsize=2)(self._epoch_order)

    def __len__(self) -> int:
        return self.steps * self.options.rows_per_step

    def __getitem__(self, i: int) -> dict[str, Any]:
        o = self.options
        epoch, within = divmod(i, len(self.rows))
        row = Row.of(self.rows[self._order(epoch)[within]], o.train_on)
        places = list(row.end_of)
        step = i // o.rows_per_step
        longest = o.longest(self._progress() if self._progress else step / self.steps)
        step_rng = random.Random(f"{o.seed}:ks:{step}")
        ks = [longest if o.fixed_k else step_rng.randint(2, longest) for _ in range(o.blocks)]
        rng = random.Random(f"{o.seed}:anchors:{i}")
        anchors = [places[rng.randrange(len(places))] for _ in range(max(0, o.blocks - len(places)))]
        anchors += rng.sample(places, o.blocks - len(anchors))
        item: dict[str, Any] = row.item(anchors, ks)
        return item | {"room": o.join_room if is_joined(step, o.join_share) and not o.pack else 0}

    def _epoch_order(self, epoch: int) -> list[int]:
        """A permutation that is sorted by length within each window. The steps of a window are then shuffled."""
        rng = random.Random(f"{self.options.seed}:epoch:{epoch}")
        order = list(range(len(self.rows)))
        rng.shuffle(order)
        rows, window = self.options.rows_per_step, self.options.rows_per_step * _WINDOW
        result: list[int] = []
        for start in range(0, len(order), window):
            part = sorted(order[start : start + window], key=lambda row: _length(self.rows[row]))
            steps = [part[j : j + rows] for j in range(0, len(part), rows)]
            rng.shuffle(steps)
            result += [s for step in steps for s in step]
        return result


def _length(row: list[Sample]) -> int:
    return sum(len(sample.ids) for sample in row)


def _packed(samples: list[Sample]) -> list[list[Sample]]:
    lengths = [len(sample.ids) for sample in samples]
    return [[samples[i] for i in row] for row in pack(lengths, max(lengths))]


def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Right-padded tensors: tokens [B, T], lengths [B], segments [B, T], anchors [B, N], ends [B, N], ks [N],
    trainable [B, T] bool, sampled [B, N] bool. The padding is a segment of its own. The rows of a joined step become fewer
    and longer."""
    if room := rows[0].get("room"):
        rows = join(rows, room)
    longest = max(len(row["ids"]) for row in rows)
    segments = torch.full((len(rows), longest), -1)
    trainable = torch.zeros(len(rows), longest, dtype=torch.bool)
    for b, row in enumerate(rows):
        numbers = torch.arange(len(row["lengths"]))
        segments[b, : len(row["ids"])] = numbers.repeat_interleave(torch.tensor(row["lengths"]))
        trainable[b, row["places"]] = True
    return {
        "tokens": torch.tensor([row["ids"] + [0] * (longest - len(row["ids"])) for row in rows]),
        "lengths": torch.tensor([len(row["ids"]) for row in rows]),
        "segments": segments,
        "anchors": torch.tensor([row["anchors"] for row in rows]),
        "ends": torch.tensor([row["ends"] for row in rows]),
        "ks": torch.tensor(rows[0]["ks"]),
        "trainable": trainable,
        "sampled": torch.tensor([row["sampled"] for row in rows], dtype=torch.bool),
    }
