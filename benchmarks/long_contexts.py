"""Time and memory of a step after a long context, at widths of 1 and 16, with grouped-query attention.

    python -m benchmarks.long_contexts             docs/long-contexts.png; six minutes, 8 GB

Random weights of the shape of Qwen3-0.6B (16 query heads over 8 key-value heads, 128 numbers each), with fewer layers and a small vocabulary,
in bfloat16: only the attention grows with the context. The cache is filled with random numbers, and a step feeds one token and its masks
after them. *Repeated* is transformers' unchanged `sdpa`, which repeats keys and values for each head of a group; *grouped* is
`decoding/grouped.py`. Steps of both are interleaved, and times are medians. Memory is the most that a step holds above the cache, from
torch's profiler. The last line is JSON.
"""

import argparse
import json
import time
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import PreTrainedModel

from benchmarks.gpu import SHAPES, random_model
from multitoken.checkpoints.provenance import provenance
from multitoken.decoding.cache import SlotCache
from multitoken.decoding.grouped import NAME
from multitoken.decoding.loop import Decoder
from multitoken.decoding.policies import Exact
from multitoken.decoding.row import Row
from multitoken.decoding.step import Batch, Feed, forward_rows

CONTEXTS = (1024, 8192, 32768)
WIDTHS = (1, 16)
WAYS = {"repeated": "sdpa", "grouped": NAME}
ROOM = 64


def filled(model: PreTrainedModel, decoder: Decoder, context: int) -> Batch:
    """A cache that holds `context` tokens, filled with random keys and values."""
    cache = SlotCache(model, 1, context + ROOM)
    batch = Batch(model, decoder.mask_id, decoder.rule, cache)
    decoder.rule.grow(context + ROOM)
    forward_rows(batch, [Feed(Row(0, decoder.request([1, 2, 3])), 3)])
    layers: Any = cache.layers
    for layer in layers:
        layer.keys.normal_()
        layer.values.normal_()
    return batch


def fed(decoder: Decoder, context: int, width: int) -> Feed:
    row = Row(0, decoder.request([1] * (context + 1), policy=Exact(1.0, k=max(WIDTHS)), max_new_tokens=ROOM - 2))
    row.cached = context
    return Feed(row, 1, width - 1)


@torch.inference_mode()
def measure(model: PreTrainedModel, context: int, width: int, rounds: int) -> dict[str, Any]:
    decoder = Decoder(model, mask_id=model.config.vocab_size - 1, trained_k=max(WIDTHS))
    batch, feed = filled(model, decoder, context), fed(decoder, context, width)
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(rounds + 1):
        for way, name in WAYS.items():
            model.config._attn_implementation = name
            started = time.perf_counter()
            forward_rows(batch, [feed])
            seconds[way].append(time.perf_counter() - started)
    peaks = {}
    for way, name in WAYS.items():
        model.config._attn_implementation = name
        peaks[way] = most_held(batch, feed)
    ms = {way: 1e3 * median(times[1:]) for way, times in seconds.items()}
    return {"context": context, "width": width, "ms": ms, "peak": peaks}


def most_held(batch: Batch, feed: Feed) -> int:
    """The peak bytes that torch holds during a step, above what it held before, from its own record of allocations and releases."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        forward_rows(batch, [feed])
    held = most = 0
    profiler: Any = found.profiler
    for event in profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| context | width | step, repeated, ms | grouped, ms | times faster | memory of a step, repeated, MB | grouped, MB |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        ms, peak = row["ms"], row["peak"]
        lines.append(
            f"| {row['context']:,} | {row['width']} | {ms['repeated']:.1f} | {ms['grouped']:.1f} | "
            f"{ms['repeated'] / ms['grouped']:.2f} | {peak['repeated'] / 1e6:.1f} | {peak['grouped'] / 1e6:.1f} |"
        )
    return "\n".join(lines)


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (times, memory) = pyplot.subplots(1, 2, figsize=(9, 3.6), constrained_layout=True)
    for way, colour in zip(WAYS, ("tab:grey", "tab:green"), strict=True):
        for width, line in zip(WIDTHS, ("--", "-"), strict=True):
            mine = [row for row in rows if row["width"] == width]
            style = {"color": colour, "linestyle": line, "marker": "o", "label": f"{way}, width {width}"}
            times.plot([row["context"] for row in mine], [row["ms"][way] for row in mine], **style)
            memory.plot([row["context"] for row in mine], [row["peak"][way] / 1e6 for row in mine], **style)
    for axes, label in ((times, "milliseconds of a step"), (memory, "MB that a step holds above the cache")):
        axes.set_xscale("log", base=2)
        axes.set_xticks(CONTEXTS, [f"{c:,}" for c in CONTEXTS])
        axes.set_xlabel("tokens in the cache")
        axes.set_ylabel(label)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    times.legend(frameon=False)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--picture", type=Path, default=Path("docs/long-contexts.png"))
    a = parser.parse_args()
    shape = SHAPES["0.6 B"] | {"num_hidden_layers": a.layers, "vocab_size": 2048}
    model = random_model(shape, torch.device("cpu"))
    rows = []
    for context in CONTEXTS:
        for width in WIDTHS:
            rows.append(measure(model, context, width, a.rounds))
            print(rows[-1], flush=True)
    print(table(rows))
    draw(rows, a.picture)
    print(json.dumps({"provenance": provenance(threads=torch.get_num_threads()), "layers": a.layers, "results": rows}))


if __name__ == "__main__":
    main()
