"""What the draft head costs: a step of all masks with it and without, in interleaved pairs.

    python -m benchmarks.head_cost                      the embedded gated adapter, 1 and 8 rows, greedy and sampled

A ratio is the median over pairs of the seconds of a step with the head by those of one without, with its 95% interval. The
last line is JSON.
"""

import argparse
import json
import time

import torch

from multitoken.checkpoints.provenance import provenance
from multitoken.decoding import Exact, Sampling
from multitoken.decoding.cache import SlotCache
from multitoken.decoding.row import Row
from multitoken.decoding.step import Batch, Feed, step
from multitoken.evaluation.statistics import ratio_interval
from multitoken.models.model import Model
from multitoken.quickstart.embedded import checkpoint

LENGTH = 64


def seconds(model: Model, rows: int, sampling: Sampling | None, *, with_head: bool) -> float:
    """Of one step: each row feeds one token and all its masks behind 64 others."""
    decoder = model.decoder
    width = decoder.trained_k
    layers = model.hf.config.get_text_config().num_hidden_layers
    cache = SlotCache(layers, rows, LENGTH + width)
    batch = Batch(model.hf, decoder.mask_id, decoder.rule, cache, decoder.drafter if with_head else None)
    decoder.rule.grow(LENGTH + width)
    feeds = []
    for i in range(rows):
        request = decoder.request([5] * (LENGTH + 1), policy=Exact(), max_new_tokens=64, sampling=sampling, row=i)
        row = Row(i, request)
        row.cached = LENGTH
        feeds.append(Feed(row, 1, width - 1))
    started = time.perf_counter()
    step(batch, feeds)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(checkpoint("gated")))
    parser.add_argument("--pairs", type=int, default=60)
    a = parser.parse_args()
    model = Model.load(a.model)
    if model.decoder.drafter is None:
        raise SystemExit(f"{a.model} has no draft head; give one that has")
    results = []
    print("| rows | temperature | step without, ms | step with, ms | ratio (95%) |\n|---|---|---|---|---|")
    for rows in (1, 8):
        for temperature in (0.0, 0.8):
            sampling = Sampling(temperature, seed=1, top_p=0.95) if temperature else None
            pairs = []
            for i in range(a.pairs + 5):
                pair = tuple(seconds(model, rows, sampling, with_head=head) for head in (True, False))
                if i >= 5:  # the first warm up
                    pairs.append(pair)
            ratio = ratio_interval(pairs)
            with_it, without = (1e3 * sorted(side)[len(side) // 2] for side in zip(*pairs, strict=True))
            low, high = ratio.interval or (float("nan"), float("nan"))
            print(
                f"| {rows} | {temperature:g} | {without:.2f} | {with_it:.2f} | {ratio.median:.3f} ({low:.3f} to {high:.3f}) |"
            )
            results.append({"rows": rows, "temperature": temperature, "with": with_it, "without": without})
            results[-1] |= {"ratio": ratio.median, "interval": ratio.interval}
    print(json.dumps({"provenance": provenance(threads=torch.get_num_threads()), "results": results}))


if __name__ == "__main__":
    main()
