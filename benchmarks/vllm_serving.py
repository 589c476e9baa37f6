"""Tokens a second of adapted models in vLLM, beside plain vLLM and vLLM's own speculative decoding, at 1 to 32 requests at once.

    multitoken export GATED runs/gated-export                 # GATED: the embedded gated adapter, or another
    python -m benchmarks.vllm_serving --gated runs/gated-export                                 about 12 minutes on 2 cores
    python -m benchmarks.vllm_serving --gated runs/gated-export --domain letters --at-once 1 8
    python -m benchmarks.vllm_serving --show                  # table and picture of everything measured so far

Each method has an engine in a process of its own (`vllm_engine`; `make .venv-vllm/.installed` builds its environment), warmed
up, which waits while another is asked: all answer the same prompts in turn, with so many in flight as long as there are
prompts left. A ratio is the median over such rounds of tokens a second against plain vLLM's, with its 95% interval. vLLM's
options are its defaults (torch.compile included) but for float32. Every answer of the gated model is compared with plain
vLLM's. Results are kept in a file, by domain and requests at once. The last line is JSON.
"""

import argparse
import json
import subprocess
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.progress import track

from benchmarks.performance import DOMAINS, NEW, draw_panel, prompts_of
from multitoken.checkpoints.provenance import provenance
from multitoken.evaluation.identity import Float64Judge, Identity, compare
from multitoken.evaluation.statistics import ratio_interval
from multitoken.models.model import Model
from multitoken.quickstart.embedded import checkpoint

PLAIN, GATED, FULL = "vLLM", "multitoken, gated", "multitoken, full"
NGRAM, SUFFIX = "vLLM, n-gram", "vLLM, suffix"
COLOURS = {GATED: ("#0072B2", "o"), FULL: ("#D55E00", "s"), NGRAM: ("#009E73", "^"), SUFFIX: ("#CC79A7", "v")}
OPTIONS = {"dtype": "float32", "block_size": 32, "max_model_len": 1024, "max_num_seqs": 32}
PROMPTS = {1: 3, 2: 4, 4: 8, 8: 16, 16: 24, 32: 48}  # of a round
_PROGRESS = Console(stderr=True)


class Engine:
    """One of `vllm_engine`'s processes."""

    def __init__(self, python: str, **options: Any) -> None:
        command = [python, "-m", "benchmarks.vllm_engine", json.dumps({**OPTIONS, **options})]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ready(self) -> str:
        """vLLM's version."""
        return self._read()["vllm"]

    def answer(self, prompts: list[list[int]], at_once: int) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"prompts": prompts, "at_once": at_once, "tokens": NEW}) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("an engine has ended; what it said stands above")
        return json.loads(line)

    def stop(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def engines_of(python: str, gated: Path) -> dict[str, Engine]:
    base, full = str(checkpoint("base")), str(checkpoint("full"))
    ngram = {"method": "ngram", "num_speculative_tokens": 5, "prompt_lookup_min": 2, "prompt_lookup_max": 5}
    kinds: dict[str, dict[str, Any]] = {
        PLAIN: {"model": base},
        NGRAM: {"model": base, "speculative_config": ngram},
        SUFFIX: {"model": base, "speculative_config": {"method": "suffix", "num_speculative_tokens": 32}},
        GATED: {"model": str(gated)},
        FULL: {"model": full},
    }
    if subprocess.run([python, "-c", "import arctic_inference"], capture_output=True).returncode:
        _PROGRESS.print("arctic-inference is not installed: suffix decoding is left out")
        del kinds[SUFFIX]
    return {name: Engine(python, **options) for name, options in kinds.items()}


def measure(engines: dict[str, Engine], domain: str, sizes: list[int], rounds: int) -> Iterator[list[dict[str, Any]]]:
    """The results of one number of requests at once after the other."""
    base = Model.load(checkpoint("base"))
    judge = Float64Judge(
        base.hf, json.loads((checkpoint("gated") / "adapter_config.json").read_text())["mtp"]["mask_token_id"]
    )
    prompts = iter(prompts_of(base, domain, sum(PROMPTS[n] for n in sizes) * (rounds + 1), None))
    for at_once in sizes:
        results: list[dict[str, Any]] = []
        rates: dict[str, list[float]] = {name: [] for name in engines}
        steps: dict[str, list[float]] = {name: [] for name in engines}
        same = dict.fromkeys(Identity, 0)
        for i in track(range(rounds + 1), description=f"{domain}, {at_once} at once", console=_PROGRESS):
            part = [next(prompts) for _ in range(PROMPTS[at_once])]
            replies = {name: engine.answer(part, at_once) for name, engine in engines.items()}
            for name, reply in replies.items():
                tokens = sum(map(len, reply["answers"]))
                if i:  # the first round warms up
                    rates[name].append(tokens / reply["seconds"])
                    steps[name].append(tokens / reply["steps"])
            for prompt, ours, theirs in zip(part, replies[GATED]["answers"], replies[PLAIN]["answers"], strict=True):
                same[compare(ours, theirs, gap=judge.after(prompt))] += 1
        for name, mine in rates.items():
            ratio = ratio_interval(list(zip(mine, rates[PLAIN], strict=True)))
            results.append(
                {
                    "domain": domain,
                    "at_once": at_once,
                    "method": name,
                    "tokens_per_second": median(mine),
                    "tokens_per_step": median(steps[name]),
                    "ratio": ratio.median,
                    "interval": ratio.interval,
                    "rates": mine,
                    "identity": {kind.value: n for kind, n in same.items()} if name == GATED else None,
                }
            )
        yield results


def show(results: list[dict[str, Any]]) -> None:
    """The tables, as they stand in docs/vllm.md."""
    for domain in dict.fromkeys(r["domain"] for r in results):
        mine = [r for r in results if r["domain"] == domain]
        print(
            f"\n| {domain}, at once | method | tokens per second | against vLLM (95%) | identical |\n|---|---|---|---|---|"
        )
        for r in mine:
            low, high = r["interval"] or (float("nan"), float("nan"))
            kinds = r["identity"]
            same = f"{kinds['identical']} of {sum(kinds.values())}, {kinds['tie']} ties" if kinds else ""
            ratio = f"{r['ratio']:.2f} ({low:.2f} to {high:.2f})"
            print(f"| {r['at_once']} | {r['method']} | {r['tokens_per_second']:.0f} | {ratio} | {same} |")


def picture(results: list[dict[str, Any]], path: Path) -> None:
    """Tokens a second against plain vLLM by requests at once, a panel a domain, with intervals."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    domains = list(dict.fromkeys(r["domain"] for r in results))
    figure = Figure(figsize=(1 + 3.2 * max(1.4, len(domains)), 3.4), dpi=200, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    panels: Any = figure.subplots(1, len(domains), sharey=True, squeeze=False)[0]
    for axes, domain in zip(panels, domains, strict=True):
        curves = {}
        for name, style in COLOURS.items():
            mine = [r for r in results if (r["domain"], r["method"]) == (domain, name) and r["interval"]]
            curves[name] = (*style, [(r["at_once"], r["ratio"], r["interval"]) for r in mine])
        draw_panel(axes, domain, curves)
    panels[0].set_ylabel("tokens a second, plain vLLM: 1")
    panels[-1].legend(fontsize=8, frameon=False)
    figure.savefig(path, format="png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gated", type=Path, help="folder that `multitoken export` wrote")
    parser.add_argument("--domain", choices=DOMAINS, default=DOMAINS[0])
    parser.add_argument("--at-once", type=int, nargs="+", choices=PROMPTS, default=list(PROMPTS))
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--python", default=".venv-vllm/bin/python", help="of the environment that has vLLM")
    parser.add_argument("--results", type=Path, default=Path("runs/vllm.json"))
    parser.add_argument("--show", action="store_true", help="measure nothing")
    parser.add_argument("--picture", type=Path, default=Path("docs/vllm.png"))
    a = parser.parse_args()
    record = json.loads(a.results.read_text()) if a.results.exists() else {"provenance": [], "results": []}
    if not a.show:
        if a.gated is None:
            parser.error("--gated is missing; expected a folder that `multitoken export` wrote")
        engines = engines_of(a.python, a.gated)
        (version,) = {engine.ready() for engine in engines.values()}
        for engine in engines.values():
            engine.answer([[2, 3, 4, 5]] * 4, 4)
        record["provenance"].append(provenance(vllm=version, threads=torch.get_num_threads()))
        a.results.parent.mkdir(parents=True, exist_ok=True)
        order = {domain: i for i, domain in enumerate(DOMAINS)}
        for new in measure(engines, a.domain, a.at_once, a.rounds):
            where = (a.domain, new[0]["at_once"])
            kept = [r for r in record["results"] if (r["domain"], r["at_once"]) != where]
            record["results"] = sorted(kept + new, key=lambda r: (order[r["domain"]], r["at_once"]))
            a.results.write_text(json.dumps(record))
        for engine in engines.values():
            engine.stop()
    show(record["results"])
    if find_spec("matplotlib"):
        picture(record["results"], a.picture)
    print(json.dumps(record))


if __name__ == "__main__":
    main()
