"""How fast the engine is: against transformers' own ways at batch 1, and against plain decoding in batches of 1 to 32.

    python -m benchmarks.performance                     both parts, the embedded models (about fifteen minutes on 2 cores)
    python -m benchmarks.performance --part batches --pairs 8

One process, one clock, warmed up. Batch 1: every method answers the same prompt in turn, and a ratio is the median over
prompts of seconds per token after the first, generate's by the method's, with its 95% interval. Batches: as many prompts at
once, all methods in turn; a ratio is that of tokens a second in total, prefill included. Every answer is checked against
greedy decoding of the model that it should be that of. The last line is JSON.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track
from transformers import AutoModelForCausalLM
from transformers.generation.streamers import BaseStreamer

from multitoken.checkpoints.provenance import provenance
from multitoken.decoding import ConfAdapt, Exact, NextToken, Policy, StaticK
from multitoken.evaluation.statistics import ratio_interval
from multitoken.models.model import Model
from multitoken.quickstart.corpus import examples
from multitoken.quickstart.embedded import checkpoint

DOMAINS = ("word-problems", "letters", "counting")
NEW = 200
WARM_UP = 2
_PROGRESS = Console(stderr=True)


@dataclass(frozen=True)
class Answer:
    """Ids, seconds until the first of them were there, how many came then, seconds in all, and forward passes (0: unknown)."""

    ids: tuple[int, ...]
    first: float
    came_first: int
    seconds: float
    passes: int = 0

    @property
    def seconds_per_token(self) -> float:
        """After the first chunk came; of the whole answer where all of it came at once."""
        rest = len(self.ids) - self.came_first
        return (self.seconds - self.first) / rest if rest else self.seconds / len(self.ids)


Method = Callable[[list[int]], Answer]


class _FirstToken(BaseStreamer):
    """Notes when the first new token came."""

    def __init__(self) -> None:
        self.prompt_seen = False
        self.at: float | None = None

    def put(self, value: Any) -> None:
        if self.prompt_seen and self.at is None:
            self.at = time.perf_counter()
        self.prompt_seen = True

    def end(self) -> None:
        pass


def transformers_way(model: Any, **options: Any) -> Method:
    """Transformers' `generate`, greedy."""

    def answer(prompt: list[int]) -> Answer:
        row, clock = torch.tensor([prompt]), _FirstToken()
        started = time.perf_counter()
        out = model.generate(
            row, attention_mask=torch.ones_like(row), do_sample=False, max_new_tokens=NEW, streamer=clock, **options
        )
        ended = time.perf_counter()
        return Answer(tuple(out[0, len(prompt) :].tolist()), (clock.at or ended) - started, 1, ended - started)

    return answer


def our_way(model: Model, policy: Policy, **options: Any) -> Method:
    """The engine, one request."""

    def answer(prompt: list[int]) -> Answer:
        ids: list[int] = []
        passes = came_first = 0
        first = 0.0
        started = time.perf_counter()
        for chunk in model.decoder.decode([prompt], policy=policy, max_new_tokens=NEW, **options):
            ids += chunk.token_ids
            passes += 1
            if passes == 1:
                first, came_first = time.perf_counter() - started, len(ids)
        return Answer(tuple(ids), first, came_first, time.perf_counter() - started, passes)

    return answer


def prompts_of(model: Model, domain: str, number: int, length: int | None) -> list[list[int]]:
    """Fresh prompts; with `length`, each with solved examples before it until it has about so many tokens."""
    prompts = []
    shots = iter(examples(domain, "speed", 4000, start=10_000))
    for example in examples(domain, "speed", number):
        messages: list[dict[str, str]] = []
        ids = model.encode([{"role": "user", "content": example.prompt}])
        while length is not None:
            shot = next(shots)
            more = [{"role": "user", "content": shot.prompt}, {"role": "assistant", "content": shot.response}]
            longer = model.encode([*messages, *more, {"role": "user", "content": example.prompt}])
            if len(longer) > length:
                break
            messages, ids = [*messages, *more], longer
        prompts.append(ids)
    return prompts


def single(models: dict[str, Model], draft: Any, pairs: int) -> Iterator[list[dict[str, Any]]]:
    """Every method at batch 1: a table for each domain and length of prompt."""
    base, gated, full = models["base"], models["gated"], models["full"]
    methods: dict[str, tuple[str, Method]] = {
        "transformers generate": ("base", transformers_way(base.hf)),
        "transformers prompt lookup": ("base", transformers_way(base.hf, prompt_lookup_num_tokens=10)),
        "transformers assisted, 0.5 M draft": ("base", transformers_way(base.hf, assistant_model=draft)),
        "next token": ("base", our_way(base, NextToken())),
        "gated, Exact 0.7": ("base", our_way(gated, Exact(0.7))),
        "gated, Exact 0.7, adaptive": ("base", our_way(gated, Exact(0.7), adaptive=True)),
        "full, Exact 0.5": ("full", our_way(full, Exact(0.5))),
        "full, Exact 0.5, adaptive": ("full", our_way(full, Exact(0.5), adaptive=True)),
        "full, ConfAdapt 0.9": ("", our_way(full, ConfAdapt(0.9))),
        "full, static 4": ("", our_way(full, StaticK(4))),
    }
    for domain, length in (*((d, None) for d in DOMAINS), ("word-problems", 1024)):
        prompts = prompts_of(base, domain, pairs + WARM_UP, length)
        answers: dict[str, list[Answer]] = {name: [] for name in methods}
        same = dict.fromkeys(methods, 0)
        where = f"{domain}{f', prompts of {length}' if length else ''}"
        for i, prompt in enumerate(track(prompts, description=where, console=_PROGRESS)):
            found = {name: method(prompt) for name, (_, method) in methods.items()}
            if i < WARM_UP:
                continue
            own = our_way(full, NextToken())(prompt).ids
            references = {"base": found["next token"].ids, "full": own, "": None}
            for name, (of, _) in methods.items():
                answers[name].append(found[name])
                same[name] += found[name].ids == references[of]
        plain, results = answers["transformers generate"], []
        for name, mine in answers.items():
            pairs_of = [(p.seconds_per_token, m.seconds_per_token) for p, m in zip(plain, mine, strict=True)]
            ratio = ratio_interval(pairs_of)
            steps = sum(max(0, a.passes - 1) for a in mine)
            results.append(
                {
                    "part": "single",
                    "prompts": where,
                    "tokens": round(median(map(len, prompts))),
                    "method": name,
                    "first_ms": 1e3 * median(a.first for a in mine),
                    "tokens_per_second": 1 / median(a.seconds_per_token for a in mine),
                    "tokens_per_step": sum(len(a.ids) - a.came_first for a in mine) / steps if steps else None,
                    "speedup": ratio.median,
                    "interval": ratio.interval,
                    "identical": same[name] if methods[name][0] else None,
                    "answers": len(mine),
                }
            )
        yield results


def together(models: dict[str, Model], pairs: int) -> Iterator[list[dict[str, Any]]]:
    """Tokens a second in total, at batches of 1 to 32, ours against our own plain decoding of the same prompts: a table for
    each domain."""
    base = models["base"]
    kinds: dict[str, tuple[Model, Policy, dict[str, Any]]] = {
        "next token": (base, NextToken(), {}),
        "gated, Exact 0.7, adaptive": (models["gated"], Exact(0.7), {"adaptive": True}),
        "full, Exact 0.5, adaptive": (models["full"], Exact(0.5), {"adaptive": True}),
    }
    for domain in DOMAINS:
        results = []
        for batch in (1, 2, 4, 8, 16, 32):
            rounds = pairs if batch > 1 else 2 * pairs
            prompts = prompts_of(base, domain, batch * (rounds + 1), None)
            rates: dict[str, list[float]] = {name: [] for name in kinds}
            for i in track(range(rounds + 1), description=f"{domain}, {batch} at once", console=_PROGRESS):
                part = prompts[batch * i : batch * (i + 1)]
                for name, (model, policy, options) in kinds.items():
                    started, tokens = time.perf_counter(), 0
                    for chunk in model.decoder.decode(part, policy=policy, max_new_tokens=NEW, **options):
                        tokens += len(chunk.token_ids)
                    if i:  # the first round warms up, and measures the machine's step times
                        rates[name].append(tokens / (time.perf_counter() - started))
            for name, mine in rates.items():
                ratio = ratio_interval(list(zip(mine, rates["next token"], strict=True)))
                results.append(
                    {
                        "part": "batches",
                        "prompts": domain,
                        "batch": batch,
                        "method": name,
                        "tokens_per_second": median(mine),
                        "speedup": ratio.median,
                        "interval": ratio.interval,
                    }
                )
        yield results


def show(results: list[dict[str, Any]]) -> None:
    """A table, as it stands in docs/performance.md."""

    def speed(r: dict[str, Any]) -> str:
        low, high = r["interval"] or (float("nan"), float("nan"))
        return f"{r['tokens_per_second']:.0f} | {r['speedup']:.2f} ({low:.2f} to {high:.2f})"

    facts = results[0]
    if facts["part"] == "single":
        title = f"{facts['prompts']}: prompts of {facts['tokens']} tokens, {facts['answers']} of them"
        columns = "first token, ms | tokens per step | identical | tokens per second | against generate (95%)"
        print(f"\n| {title} | {columns} |\n|---|---|---|---|---|---|")
        for r in results:
            steps = f"{r['tokens_per_step']:.2f}" if r["tokens_per_step"] else "-"
            same = f"{r['identical']} of {r['answers']}" if r["identical"] is not None else "-"
            print(f"| {r['method']} | {r['first_ms']:.1f} | {steps} | {same} | {speed(r)} |", flush=True)
        return
    columns = "method | tokens per second in total | against plain decoding (95%)"
    print(f"\n| {facts['prompts']}, at once | {columns} |\n|---|---|---|---|")
    for r in results:
        print(f"| {r['batch']} | {r['method']} | {speed(r)} |", flush=True)


def draw_panel(axes: Any, domain: str, curves: dict[str, tuple[str, str, list[tuple[int, float, Any]]]]) -> None:
    """Speed-up by requests at once. curves: by label, (colour, marker, [(requests, ratio, its interval)])."""
    axes.axhline(1, color="#1f2328", linestyle="--", linewidth=1)
    for label, (color, marker, points) in curves.items():
        at, values = [n for n, _, _ in points], [ratio for _, ratio, _ in points]
        bars = [[v - low for _, v, (low, _) in points], [high - v for _, v, (_, high) in points]]
        axes.errorbar(at, values, yerr=bars, color=color, marker=marker, capsize=3, label=label)
    axes.set_xscale("log", base=2)
    axes.set_xticks([1, 2, 4, 8, 16, 32], ["1", "2", "4", "8", "16", "32"])
    axes.set_title(domain, fontsize=10)
    axes.set_xlabel("requests at once")
    axes.grid(axis="y", color="#e6e8eb")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_ylim(bottom=0)


def picture(results: list[dict[str, Any]], path: Path) -> None:
    """Speed-up over plain decoding by batch size, a panel a domain, with intervals."""
    figure = Figure(figsize=(9, 3.2), dpi=200, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    styles = {"gated, Exact 0.7, adaptive": ("#0072B2", "o"), "full, Exact 0.5, adaptive": ("#D55E00", "s")}
    panels: Any = figure.subplots(1, len(DOMAINS), sharey=True)
    for axes, domain in zip(panels, DOMAINS, strict=True):
        curves = {}
        for name, style in styles.items():
            mine = [r for r in results if r["part"] == "batches" and (r["prompts"], r["method"]) == (domain, name)]
            points = [(r["batch"], r["speedup"], r["interval"]) for r in mine]
            curves[name.replace(", adaptive", "")] = (*style, points)
        draw_panel(axes, domain, curves)
    panels[0].set_ylabel("tokens a second, plain decoding: 1")
    panels[0].legend(fontsize=8, frameon=False)
    figure.savefig(path, format="png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("single", "batches"))
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--picture", type=Path, default=Path("docs/performance.png"))
    a = parser.parse_args()
    models = {name: Model.load(checkpoint(name)) for name in ("base", "gated", "full")}
    results: list[dict[str, Any]] = []
    tables = []
    if a.part in (None, "single"):
        draft = AutoModelForCausalLM.from_pretrained(checkpoint("draft"), dtype=torch.float32)
        tables.append(single(models, draft, a.pairs))
    if a.part in (None, "batches"):
        tables.append(together(models, max(6, a.pairs // 2)))
    for table in chain(*tables):
        show(table)
        results += table
    if a.part in (None, "batches"):
        picture(results, a.picture)
    facts = provenance(threads=torch.get_num_threads())
    print(json.dumps({"provenance": facts, "results": results}))


if __name__ == "__main__":
    main()
