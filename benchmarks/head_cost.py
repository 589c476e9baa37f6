"""What the draft head costs: the time of a step with all masks, with the head and without it, in interleaved pairs.

    python -m benchmarks.head_cost                      the embedded gated adapter, 1 and 8 rows, greedy and sampled

A ratio is the seconds of a step with the head divided by those of a step without it, as the median over pairs with its 95%
interval. The last line is JSON.
"""

import argparse
import json
import time

import torch

from benchmarks.speed_prompts import DOMAINS, prompts_of
from benchmarks.tables import with_interval
from multitoken.checkpoints.provenance import provenance
from multitoken.decoding import Exact, Sampling
from multitoken.decoding.cache import SlotCache
from multitoken.decoding.row import Row
from multitoken.decoding.step import Batch, Feed, step
from multitoken.evaluation.statistics import ratio_interval
from multitoken.models.model import Model
from multitoken.quickstart.embedded import checkpoint

THRESHOLD = 0.6
TEXTS = 15  # batches of texts that steps are timed on
LENGTH = 96  # tokens before the block: a prompt and the beginning of its answer


def texts(model: Model, number: int, sampling: Sampling | None) -> list[list[int]]:
    """Prompts with the model's answers, cut to LENGTH + 1 tokens each."""
    prompts = iter(prompts_of(model, DOMAINS[0], 8 * number, None))
    found: list[list[int]] = []
    while len(found) < number:
        prompt = next(prompts)
        answer = [
            t for chunk in model.decoder.decode([prompt], max_new_tokens=64, sampling=sampling) for t in chunk.token_ids
        ]
        if len(prompt) < LENGTH - 8 and len(prompt) + len(answer) > LENGTH + 20:
            found.append((prompt + answer)[: LENGTH + 1])
    return found


class Step:
    """A step of rows that each feed one token and all their masks, after LENGTH cached tokens."""

    def __init__(self, model: Model, rows: list[list[int]], sampling: Sampling | None) -> None:
        self._decoder, self._model, self._texts, self._sampling = model.decoder, model.hf, rows, sampling
        width = self._decoder.trained_k
        self._cache = SlotCache(model.hf, len(rows), LENGTH + width)
        self._decoder.rule.grow(LENGTH + width)
        fresh = self._rows()
        for row in fresh:
            row.cached = 0
        step(self._batch(with_head=False), [Feed(row, LENGTH) for row in fresh])

    def _rows(self) -> list[Row]:
        more = {"policy": Exact(THRESHOLD), "max_new_tokens": 64, "sampling": self._sampling}
        rows = [Row(i, self._decoder.request(text, row=i, **more)) for i, text in enumerate(self._texts)]
        for row in rows:
            row.cached = LENGTH
        return rows

    def _batch(self, *, with_head: bool) -> Batch:
        decoder = self._decoder
        return Batch(self._model, decoder.mask_id, decoder.rule, self._cache, decoder.drafter if with_head else None)

    def seconds(self, *, with_head: bool) -> float:
        feeds = [Feed(row, 1, self._decoder.trained_k - 1) for row in self._rows()]
        batch = self._batch(with_head=with_head)
        started = time.perf_counter()
        step(batch, feeds)
        return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(checkpoint("gated")))
    parser.add_argument("--pairs", type=int, default=90)
    a = parser.parse_args()
    model = Model.load(a.model)
    if model.decoder.drafter is None:
        raise SystemExit(f"{a.model} has no draft head; name a model that has one")
    results = []
    print("| rows | temperature | step without, ms | step with, ms | ratio (95%) |\n|---|---|---|---|---|")
    for rows in (1, 8):
        for temperature in (0.0, 0.8):
            sampling = Sampling(temperature, seed=1, top_p=0.95) if temperature else None
            pairs: list[tuple[float, float]] = []
            answers = texts(model, TEXTS * rows, sampling)
            for first in range(0, len(answers), rows):
                one = Step(model, answers[first : first + rows], sampling)
                for i in range(a.pairs // TEXTS + 2):
                    with_it, without = one.seconds(with_head=True), one.seconds(with_head=False)
                    if i >= 2:  # the first two warm up
                        pairs.append((with_it, without))
            ratio = ratio_interval(pairs)
            with_it, without = (1e3 * sorted(side)[len(side) // 2] for side in zip(*pairs, strict=True))
            print(
                f"| {rows} | {temperature:g} | {without:.2f} | {with_it:.2f} | {with_interval(ratio.median, ratio.interval, 3)} |"
            )
            results.append({"rows": rows, "temperature": temperature, "with": with_it, "without": without})
            results[-1] |= {"ratio": ratio.median, "interval": ratio.interval}
    print(json.dumps({"provenance": provenance(threads=torch.get_num_threads()), "results": results}))


if __name__ == "__main__":
    main()
