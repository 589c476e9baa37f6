"""How fast the engine is, compared with transformers' own methods at batch 1 and with plain decoding in batches of 1 to 32.

    python -m benchmarks.performance                     both parts, the embedded models (about fifteen minutes on 2 cores)
    python -m benchmarks.performance --part batches --pairs 8
    python -m benchmarks.performance --part batches --model held-out=DIR --domain letters counting --temperature 0.8

One process, one clock, after a warm-up. At batch 1 all methods answer a prompt before the next prompt starts. A ratio is the
seconds per token after the first token of transformers' `generate`, divided by the method's, as the median over prompts with
its 95% interval. In the other part, all methods decode the same batch of prompts before the next batch starts. A ratio is the
total tokens a second, prefill included, divided by that of our own next-token decoding of the bare base. Answers that should
equal next-token decoding are checked against it, with the same seed and weights; those of ConfAdapt and static k are not. The
last line is JSON.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from transformers import AutoModelForCausalLM
from transformers.generation.streamers import BaseStreamer

from benchmarks.batches import PLAIN, of_another_base, together
from benchmarks.curves import speed_picture
from benchmarks.options import Entrant, add_sampling, entrants_in, labelled, sampling_in
from benchmarks.rivals import rival
from benchmarks.speed_prompts import DOMAINS, NEW, prompts_of
from benchmarks.tables import with_interval
from multitoken.checkpoints.provenance import provenance
from multitoken.decoding import ConfAdapt, Exact, NextToken, Policy, StaticK
from multitoken.evaluation.measure import label_of, parse_policy
from multitoken.evaluation.statistics import ratio_interval
from multitoken.models.model import Model
from multitoken.quickstart.embedded import checkpoint

WARM_UP = 2
_PROGRESS = Console(stderr=True)


@dataclass(frozen=True)
class Answer:
    """ids: the new tokens. first: seconds until the first of them came. came_first: how many came then. seconds: in total. passes:
    forward passes (0: unknown)."""

    ids: tuple[int, ...]
    first: float
    came_first: int
    seconds: float
    passes: int = 0

    @property
    def seconds_per_token(self) -> float:
        """After the first chunk; over the whole answer if all of it came at once."""
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
    """The engine with one request."""

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


def single(models: dict[str, Model], draft: Any, pairs: int) -> Iterator[list[dict[str, Any]]]:
    """Every method at batch 1. Yields the results of each domain and prompt length, one after the other."""
    base, gated, full = models["base"], models["gated"], models["full"]
    own = gated.default_policy
    methods: dict[str, tuple[str, Method]] = {
        "transformers generate": ("base", transformers_way(base.hf)),
        "transformers prompt lookup": ("base", transformers_way(base.hf, prompt_lookup_num_tokens=10)),
        "transformers assisted, 0.5 M draft": ("base", transformers_way(base.hf, assistant_model=draft)),
        "next token": ("base", our_way(base, NextToken())),
        f"gated, {label_of(own)}": ("base", our_way(gated, own)),
        f"gated, {label_of(own)}, adaptive": ("base", our_way(gated, own, adaptive=True)),
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


def show(results: list[dict[str, Any]]) -> None:
    """Print a table. Those of batch 1 have the form of docs/performance.md."""

    def speed(r: dict[str, Any]) -> str:
        return f"{r['tokens_per_second']:.0f} | {with_interval(r['speedup'], r['interval'])}"

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
    how = f", temperature {facts['temperature']:g}" if facts["temperature"] else ""
    columns = "method | tokens per second in total | against plain decoding (95%) | outputs that differ"
    print(f"\n| {facts['prompts']}{how}, at once | {columns} |\n|---|---|---|---|---|")
    for r in results:
        same = f"{r['different']} of {r['answers']}, {r['ties']} ties" if "different" in r else "-"
        print(f"| {r['batch']} | {r['method']} | {speed(r)} | {same} |", flush=True)


def picture(results: list[dict[str, Any]], path: Path) -> None:
    """Speed-up over plain decoding by batch size, with intervals."""
    domains: dict[str, dict[str, list[Any]]] = {}
    for r in results:
        if r["part"] == "batches" and r["method"] != PLAIN and r["interval"]:
            curves = domains.setdefault(r["prompts"], {})
            curves.setdefault(r["method"].replace(", adaptive", ""), []).append(
                (r["batch"], r["speedup"], r["interval"])
            )
    if domains:
        speed_picture(domains, "tokens a second, relative to plain decoding", path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("single", "batches"))
    parser.add_argument("--pairs", type=int, default=20)
    batches = parser.add_argument_group("options of the batches part")
    batches.add_argument(
        "--model", type=labelled, action="append", metavar="LABEL=DIR", help="an adapted model; repeatable"
    )
    batches.add_argument("--base", type=Path, help="base of the gated adapters, if not where they say")
    batches.add_argument("--policy", type=parse_policy, help="policy of these models; default: the checkpoint's own")
    batches.add_argument("--domain", nargs="+", choices=DOMAINS, default=list(DOMAINS))
    batches.add_argument("--rounds", type=int, help="per batch size; default: half of --pairs, at least 6")
    batches.add_argument(
        "--picture", type=Path, help="default: docs/performance.png for the embedded models, else none"
    )
    add_sampling(parser)
    a = parser.parse_args()
    sampling = sampling_in(parser, a)
    for name in ("pairs", "rounds"):
        if getattr(a, name) is not None and getattr(a, name) < 1:
            parser.error(f"--{name} is {getattr(a, name)}; expected at least 1")
    if a.part != "batches" and (a.model or a.base or a.policy or sampling):
        parser.error("--model, --base, --policy and --temperature are for batches; add --part batches")
    if not a.model and (a.base or a.policy):
        parser.error("--base and --policy belong to a --model LABEL=DIR; add one")
    contest: Sequence[tuple[Entrant, Policy]]
    results: list[dict[str, Any]] = []
    tables: list[Iterator[list[dict[str, Any]]]] = []
    if a.model:
        entrants = entrants_in(parser, a)
        if odd := of_another_base(entrants):
            parser.error(f"{odd.label} was not made from the base of {entrants[0].label}; measure it in a separate run")
        contest = [(entrant, a.policy or entrant.adapted.default_policy) for entrant in entrants]
    else:
        base, gated, full = map(Model.load, (checkpoint("base"), checkpoint("gated"), rival("full")))
        entrants = [Entrant("gated", gated, base), Entrant("full", full, full)]
        contest = [(entrant, entrant.adapted.default_policy) for entrant in entrants]
        if a.part in (None, "single"):
            draft = AutoModelForCausalLM.from_pretrained(rival("draft"), dtype=torch.float32)
            tables.append(single({"base": base, "gated": gated, "full": full}, draft, a.pairs))
    if a.part in (None, "batches"):
        tables.append(together(contest, a.domain, a.rounds or max(6, a.pairs // 2), sampling))
    for table in chain(*tables):
        show(table)
        results += table
    is_usual = not a.model and sampling is None and tuple(a.domain) == DOMAINS
    if path := a.picture or (Path("docs/performance.png") if is_usual else None):
        picture(results, path)
    facts = provenance(threads=torch.get_num_threads())
    print(json.dumps({"provenance": facts, "results": results}))


if __name__ == "__main__":
    main()
