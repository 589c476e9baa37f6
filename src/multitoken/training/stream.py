"""Which sample, which anchors and which ks come at which moment of training: a function of the seed and the place in
the stream alone, so that a resumed run, several processes and accumulated gradients all see the same thing."""

import random
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.utils.data import Dataset

from .encoding import Sample

_WINDOW = 16  # steps whose rows are sorted by length together: less padding, still random


@dataclass(frozen=True)
class StreamOptions:
    """rows_per_step: rows of one optimizer step over all processes and micro-batches."""

    seed: int
    rows_per_step: int
    blocks: int
    k_max: int
    fixed_k: bool = False
    train_on: str = "response"


class BlockStream(Dataset[dict[str, list[int]]]):
    """Item i is row `i % rows_per_step` of step `i // rows_per_step`: its token ids, where anchors may stand (`places`),
    anchors [N] drawn from them, the end of each one's turn [N], and ks [N].

    An anchor stands where the *next* token is to be predicted. Its block may run up to the end of that token's turn.
    """

    def __init__(self, samples: list[Sample], options: StreamOptions, steps: int) -> None:
        self.samples = samples
        self.options = options
        self.steps = steps
        self._order = lru_cache(maxsize=2)(self._epoch_order)

    def __len__(self) -> int:
        return self.steps * self.options.rows_per_step

    def __getitem__(self, i: int) -> dict[str, list[int]]:
        o = self.options
        epoch, within = divmod(i, len(self.samples))
        sample = self.samples[self._order(epoch)[within]]
        turns = sample.predictable(o.train_on)
        end_of = {place: end for start, end in turns for place in range(start - 1, end - 1)}
        places = list(end_of)
        step_rng = random.Random(f"{o.seed}:ks:{i // o.rows_per_step}")
        ks = [o.k_max if o.fixed_k else step_rng.randint(2, o.k_max) for _ in range(o.blocks)]
        rng = random.Random(f"{o.seed}:anchors:{i}")
        anchors = [places[rng.randrange(len(places))] for _ in range(max(0, o.blocks - len(places)))]
        anchors += rng.sample(places, o.blocks - len(anchors))
        ends = [end_of[anchor] for anchor in anchors]
        return {"ids": [*sample.ids], "places": places, "anchors": anchors, "ends": ends, "ks": ks}

    def _epoch_order(self, epoch: int) -> list[int]:
        """A permutation whose windows are sorted by length, the steps within a window shuffled."""
        rng = random.Random(f"{self.options.seed}:epoch:{epoch}")
        order = list(range(len(self.samples)))
        rng.shuffle(order)
        rows, window = self.options.rows_per_step, self.options.rows_per_step * _WINDOW
        result: list[int] = []
        for start in range(0, len(order), window):
            part = sorted(order[start : start + window], key=lambda s: len(self.samples[s].ids))
            steps = [part[j : j + rows] for j in range(0, len(part), rows)]
            rng.shuffle(steps)
            result += [s for step in steps for s in step]
        return result


def collate(rows: list[dict[str, list[int]]]) -> dict[str, Tensor]:
    """Right-padded tensors: tokens [B, T], lengths [B], anchors [B, N], ends [B, N], ks [N], trainable [B, T] bool."""
    longest = max(len(row["ids"]) for row in rows)
    trainable = torch.zeros(len(rows), longest, dtype=torch.bool)
    for marked, row in zip(trainable, rows, strict=True):
        marked[row["places"]] = True
    return {
        "tokens": torch.tensor([row["ids"] + [0] * (longest - len(row["ids"])) for row in rows]),
        "lengths": torch.tensor([len(row["ids"]) for row in rows]),
        "anchors": torch.tensor([row["anchors"] for row in rows]),
        "ends": torch.tensor([row["ends"] for row in rows]),
        "ks": torch.tensor(rows[0]["ks"]),
        "trainable": trainable,
    }
