"""Tokens a second of adapted models in vLLM, compared with plain vLLM and its own speculative decoding, at 1 to 32 requests at once.

    multitoken export GATED runs/gated-export                 # GATED: the embedded gated adapter, or another
    python -m benchmarks.vllm_serving --gated runs/gated-export                                 about 6 minutes on 2 cores
    python -m benchmarks.vllm_serving --gated runs/gated-export --domain letters --at-once 1 8 --temperature 0.8 --top-p 0.95
    python -m benchmarks.vllm_serving --gated DIR --base ../runs/held-out --label held-out      # another model
    python -m benchmarks.vllm_serving --gated runs/gated-export --only plain gated ngram suffix full
    python -m benchmarks.vllm_serving --gated runs/gated-export --before REVISION   # also served by another git revision's code
    python -m benchmarks.vllm_serving --show                  # table and picture of everything measured so far

Each method has an engine in a process of its own (`vllm_engine`; `make .venv-vllm/.installed` builds its environment). It is
warmed up, and waits while another engine is asked. All answer the same prompts in interleaved rounds, with the given number of
requests in flight until fewer prompts are left. A ratio is the median over these rounds of tokens a second divided by plain
vLLM's, with its 95% interval. vLLM's options are its defaults (torch.compile included), except for `--dtype` and the sizes in
`OPTIONS`.

Greedy answers of the gated model are all compared with plain vLLM's. In sampling, vLLM's own sampler draws other noise.
Therefore the answers of the first rounds are compared with those that the gated server itself gives to the same seeds under the
policy next-token, outside the measured time. Results are kept in a file, by label, dtype, domain, temperature, top-p and requests
at once. The last line is JSON.
"""

import argparse
import json
import subprocess
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from importlib.util import find_spec
from itertools import accumulate
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.progress import track

from benchmarks.checked_out import checked_out
from benchmarks.child import Child
from benchmarks.options import add_sampling, sampling_in
from benchmarks.rivals import rival
from benchmarks.speed_prompts import DOMAINS, NEW, prompts_of
from benchmarks.tables import with_interval
from multitoken.checkpoints.provenance import provenance
from multitoken.decoding.sampling import Sampling
from multitoken.evaluation.identity import Identity, Judge, compare
from multitoken.evaluation.statistics import ratio_interval
from multitoken.models.model import Model
from multitoken.quickstart.embedded import checkpoint

METHODS = {
    "plain": "vLLM",
    "ngram": "vLLM, n-gram",
    "suffix": "vLLM, suffix",
    "gated": "multitoken, gated",
    "full": "multitoken, full",
    "sync": "vLLM, synchronous",  # the fair comparison for the plugin's servers where masks do not pay
    "next-token": "multitoken, gated, next token",
    "before": "multitoken, gated, before",
}
BEFORE = "before"  # has an option of its own
PLAIN, GATED, ALONE = METHODS["plain"], METHODS["gated"], METHODS["next-token"]
OPTIONS = {"block_size": 32, "max_model_len": 1024, "max_num_seqs": 32}
PROMPTS = {1: 8, 2: 8, 4: 12, 8: 24, 16: 32, 32: 64}  # per round
CHECKED = 3  # rounds whose sampled answers are compared, including the warm-up
KEY = ("label", "dtype", "domain", "temperature", "top_p", "at_once")
_PROGRESS = Console(stderr=True)


class Engine:
    """One of `vllm_engine`'s processes."""

    def __init__(self, python: str, source: Path | None = None, **options: Any) -> None:
        """source: the folder of the code that is served, if not this one."""
        command = [python, "-m", "benchmarks.vllm_engine", json.dumps({**OPTIONS, **options})]
        self._child = Child(command, source)

    def ready(self) -> str:
        """vLLM's version."""
        return self._child.read()["vllm"]

    def answer(
        self, prompts: list[list[int]], at_once: int, sampling: Sampling | None = None, policy: str | None = None
    ) -> dict[str, Any]:
        """policy: a policy of the plugin in place of the server's own."""
        params: dict[str, Any] = {"max_tokens": NEW, "temperature": sampling.temperature if sampling else 0.0}
        if sampling and sampling.top_p is not None:
            params["top_p"] = sampling.top_p
        if policy:
            params["extra_args"] = {"mtp_policy": policy}
        question = {"prompts": prompts, "at_once": at_once, "params": params, "seed": sampling and sampling.seed}
        return self._child.ask(question)

    def stop(self) -> None:
        self._child.stop()


def engines_of(
    python: str, base: Path, gated: Path, only: list[str], before: Path | None, dtype: str
) -> dict[str, Engine]:
    """The engines by method, in the order of `METHODS`."""
    ngram = {"method": "ngram", "num_speculative_tokens": 5, "prompt_lookup_min": 2, "prompt_lookup_max": 5}
    kinds: dict[str, dict[str, Any]] = {
        "plain": {"model": str(base)},
        "ngram": {"model": str(base), "speculative_config": ngram},
        "suffix": {"model": str(base), "speculative_config": {"method": "suffix", "num_speculative_tokens": 32}},
        "gated": {"model": str(gated)},
        "full": {"model": str(rival("full"))},
        "sync": {"model": str(base), "async_scheduling": False},
        "next-token": {"model": str(gated)},
        "before": {"model": str(gated), "source": before},
    }
    if "suffix" in only and subprocess.run([python, "-c", "import arctic_inference"], capture_output=True).returncode:
        _PROGRESS.print("arctic-inference is not installed: suffix decoding is left out")
        del kinds["suffix"]
    return {METHODS[name]: Engine(python, dtype=dtype, **options) for name, options in kinds.items() if name in only}


class Check:
    """Compares the gated model's answers with those that they must equal, token for token."""

    def __init__(self, base: Model, gated: Path) -> None:
        facts = json.loads((gated / "config.json").read_text())["mtp"]
        self._judge = Judge(base.hf, facts["mask_token_id"])
        self.found = dict.fromkeys(Identity, 0)

    def add(
        self, prompts: list[list[int]], ours: list[list[int]], theirs: list[list[int]], sampling: Sampling | None
    ) -> None:
        for i, (prompt, mine, reference) in enumerate(zip(prompts, ours, theirs, strict=True)):
            own = sampling and replace(sampling, seed=sampling.seed + i)
            self.found[compare(mine, reference, gap=self._judge.after(prompt, own))] += 1


def measure(
    engines: dict[str, Engine], a: argparse.Namespace, sampling: Sampling | None
) -> Iterator[list[dict[str, Any]]]:
    """Yields the results of each number of requests at once, one after the other."""
    base = Model.load(a.base, dtype=a.dtype)
    prompts = iter(prompts_of(base, a.domain, sum(PROMPTS[n] for n in a.at_once) * (a.rounds + 1), None))
    for at_once in a.at_once:
        rates: dict[str, list[float]] = {name: [] for name in engines}
        steps: dict[str, list[float]] = {name: [] for name in engines}
        check = Check(base, a.gated)
        starts = list(accumulate([PROMPTS[at_once]] * a.rounds, initial=0))
        for i, first in enumerate(track(starts, description=f"{a.domain}, {at_once} at once", console=_PROGRESS)):
            part = [next(prompts) for _ in range(PROMPTS[at_once])]
            drawn = sampling and replace(sampling, seed=sampling.seed + first)
            replies = {
                name: engine.answer(part, at_once, drawn, policy="next-token" if name == ALONE else None)
                for name, engine in engines.items()
            }
            for name, reply in replies.items():
                tokens = sum(map(len, reply["answers"]))
                if i:  # the first round warms up
                    rates[name].append(tokens / reply["seconds"])
                    steps[name].append(tokens / reply["steps"])
            reference = replies[PLAIN] if drawn is None else None
            if drawn and i < CHECKED:
                reference = engines[GATED].answer(part, at_once, drawn, policy="next-token")
            if reference:
                check.add(part, replies[GATED]["answers"], reference["answers"], drawn)
        results: list[dict[str, Any]] = []
        for name, mine in rates.items():
            ratio = ratio_interval(list(zip(mine, rates[PLAIN], strict=True)))
            results.append(
                {
                    "label": a.label,
                    "dtype": a.dtype,
                    "domain": a.domain,
                    "temperature": sampling.temperature if sampling else 0.0,
                    "top_p": sampling and sampling.top_p,
                    "at_once": at_once,
                    "method": name,
                    "tokens_per_second": median(mine),
                    "tokens_per_step": median(steps[name]),
                    "ratio": ratio.median,
                    "interval": ratio.interval,
                    "rates": mine,
                    "identity": {kind.value: n for kind, n in check.found.items()} if name == GATED else None,
                }
            )
        yield results


def how(result: dict[str, Any]) -> str:
    """How it was computed and its tokens were chosen, as an addition to a name; empty for float32 and greedy."""
    dtype = f", {result['dtype']}" if result["dtype"] != "float32" else ""
    top_p = f", top-p {result['top_p']:g}" if result["top_p"] is not None else ""
    return dtype + (f", temperature {result['temperature']:g}{top_p}" if result["temperature"] else "")


def asked(result: dict[str, Any]) -> str:
    """The model, the domain and the sampling: the title of a table, or of a row in the table of ratios."""
    return f"{result['label']}, {result['domain']}{how(result)}"


def show(results: list[dict[str, Any]]) -> None:
    """Print one table for each model, domain and kind of sampling."""
    tables: dict[str, list[dict[str, Any]]] = {}
    for r in results:
        tables.setdefault(asked(r), []).append(r)
    for title, mine in tables.items():
        columns = "method | tokens per second | against vLLM (95%) | identical"
        print(f"\n| {title}, at once | {columns} |\n|---|---|---|---|---|")
        for r in mine:
            kinds = r["identity"]
            same = f"{kinds['identical']} of {sum(kinds.values())}, {kinds['tie']} ties" if kinds else ""
            ratio = with_interval(r["ratio"], r["interval"])
            print(f"| {r['at_once']} | {r['method']} | {r['tokens_per_second']:.0f} | {ratio} | {same} |")


def show_ratios(results: list[dict[str, Any]]) -> None:
    """Print one table of what the gated model gains, in the form of docs/vllm.md: a row for each kind of request, a column for
    each number of requests at once."""
    gated = [r for r in results if r["method"] == GATED]
    loads = sorted({r["at_once"] for r in gated})
    print(f"\n| gated, against vLLM (95%), at once | {' | '.join(map(str, loads))} |\n|---{'|---' * len(loads)}|")
    rows: dict[str, dict[int, str]] = {}
    for r in gated:
        rows.setdefault(asked(r), {})[r["at_once"]] = with_interval(r["ratio"], r["interval"])
    for title, cells in rows.items():
        print(f"| {title} | {' | '.join(cells.get(n, '') for n in loads)} |")
    found = {kind.value: sum(r["identity"][kind.value] for r in gated) for kind in Identity}
    print(f"\nAnswers that were compared: {', '.join(f'{n} {kind}' for kind, n in found.items())}.")


def picture(results: list[dict[str, Any]], path: Path) -> None:
    """Tokens a second relative to plain vLLM by requests at once: one panel per domain, with intervals."""
    from benchmarks.curves import speed_picture

    several = len({r["label"] for r in results}) > 1
    domains: dict[str, dict[str, list[Any]]] = {}
    for r in results:
        if r["method"] != PLAIN and r["interval"]:
            name = f"{r['method']}{', ' + r['label'] if several else ''}{how(r)}"
            curve = domains.setdefault(r["domain"], {}).setdefault(name, [])
            curve.append((r["at_once"], r["ratio"], r["interval"]))
    if domains:
        speed_picture(domains, "tokens a second, relative to plain vLLM", path)


def read_results(path: Path) -> dict[str, Any]:
    """The results so far. Raises `SystemExit` for a file in another format."""
    record = json.loads(path.read_text()) if path.exists() else {"provenance": [], "results": []}
    if any(key not in result for result in record["results"] for key in KEY):
        raise SystemExit(f"{path} has results without {', '.join(KEY)}: measure again, or give another --results")
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gated", type=Path, help="a folder that `multitoken export` wrote")
    parser.add_argument("--base", type=Path, default=checkpoint("base"), help="the model that the adapter was made for")
    parser.add_argument("--label", default="embedded", help="name of the model in tables and results")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=[name for name in METHODS if name != BEFORE],
        default=["plain", "gated"],
        help="the methods to measure",
    )
    parser.add_argument("--before", metavar="REVISION", help="also serve --gated with this git revision's code")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--domain", choices=DOMAINS, default=DOMAINS[0])
    parser.add_argument("--at-once", type=int, nargs="+", choices=PROMPTS, default=list(PROMPTS))
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--python", default=".venv-vllm/bin/python", help="Python of the environment with vLLM")
    parser.add_argument("--results", type=Path, default=Path("runs/vllm.json"))
    parser.add_argument("--show", action="store_true", help="measure nothing, show the results so far")
    parser.add_argument("--picture", type=Path, default=Path("docs/vllm.png"))
    add_sampling(parser)
    a = parser.parse_args()
    sampling = sampling_in(parser, a)
    if a.rounds < 1:
        parser.error(f"--rounds is {a.rounds}; expected at least 1")
    record = read_results(a.results)
    if not a.show:
        check(parser, a)
        with checked_out(a.before) if a.before else nullcontext() as before:  # its code may be imported at any time
            measure_into(record, a, sampling, before)
    show(record["results"])
    show_ratios(record["results"])
    if find_spec("matplotlib"):
        picture(record["results"], a.picture)
    print(json.dumps(record))


def measure_into(record: dict[str, Any], a: argparse.Namespace, sampling: Sampling | None, before: Path | None) -> None:
    """Add new results to the record, and save the record after each number of requests."""
    engines = engines_of(a.python, a.base, a.gated, [*a.only, *([BEFORE] if before else [])], before, a.dtype)
    (version,) = {engine.ready() for engine in engines.values()}
    for engine in engines.values():
        engine.answer([[2, 3, 4, 5]] * 4, 4, sampling)
    record["provenance"].append(provenance(vllm=version, threads=torch.get_num_threads()))
    a.results.parent.mkdir(parents=True, exist_ok=True)
    order = {domain: i for i, domain in enumerate(DOMAINS)}
    for new in measure(engines, a, sampling):
        where = [new[0][key] for key in KEY]
        kept = [r for r in record["results"] if [r[key] for key in KEY] != where]
        record["results"] = sorted(
            kept + new,
            key=lambda r: (
                r["label"],
                r["dtype"],
                order[r["domain"]],
                r["temperature"],
                r["top_p"] or 1.0,
                r["at_once"],
            ),
        )
        a.results.write_text(json.dumps(record))
    for engine in engines.values():
        engine.stop()


def check(parser: argparse.ArgumentParser, a: argparse.Namespace) -> None:
    """Ends the program with an error for what cannot be measured, before an engine starts."""
    if a.gated is None:
        parser.error("--gated is missing; expected a folder that `multitoken export` wrote")
    config = a.gated / "config.json"
    if not config.is_file() or "mtp" not in json.loads(config.read_text()):
        parser.error(f"--gated {a.gated} has no config.json with an mtp block; expected what `multitoken export` wrote")
    if not {"plain", "gated"} <= set(a.only):
        parser.error(f"--only {' '.join(a.only)}: the others are compared with plain and gated; add them")
    if "full" in a.only and a.base != checkpoint("base"):
        parser.error(
            "--only full is the embedded full adaptation, which belongs to the embedded base; leave --base out"
        )
    if not Path(a.python).exists():
        parser.error(f"--python {a.python} does not exist; expected the Python of an environment with vLLM")


if __name__ == "__main__":
    main()
