"""Batches of 1 to 32 prompts: tokens a second of adapted models, compared with our own plain decoding of the bare base."""

import time
from collections.abc import Iterator, Sequence
from statistics import median
from typing import Any

from rich.console import Console
from rich.progress import track

from benchmarks.options import Entrant
from benchmarks.speed_prompts import NEW, prompts_of
from multitoken.decoding import NextToken, Policy
from multitoken.decoding.sampling import Sampling
from multitoken.evaluation.identity import Identity, Judge, compare
from multitoken.evaluation.measure import label_of
from multitoken.evaluation.statistics import ratio_interval
from multitoken.models.model import Model

BATCHES = (1, 2, 4, 8, 16, 32)
PLAIN = "next token"


def together(
    entrants: Sequence[tuple[Entrant, Policy]], domains: list[str], pairs: int, sampling: Sampling | None
) -> Iterator[list[dict[str, Any]]]:
    """Yields the results of one domain after the other. All methods decode the same prompts, interleaved, and the engine chooses
    the number of masks.

    The first entrant's plain model is the baseline. Gated adapters share its base (`of_another_base`).
    """
    (first, _), *_ = entrants
    methods = {f"{entrant.label}, {label_of(policy)}, adaptive": (entrant, policy) for entrant, policy in entrants}
    judges = {
        name: Judge(e.plain.hf, e.adapted.mtp and e.adapted.mtp.mask_token_id) for name, (e, _) in methods.items()
    }
    for domain in domains:
        results: list[dict[str, Any]] = []
        for batch in BATCHES:
            rounds = pairs if batch > 1 else 2 * pairs
            prompts = prompts_of(first.plain, domain, batch * (rounds + 1), None)
            rates: dict[str, list[float]] = {name: [] for name in (PLAIN, *methods)}
            found: dict[str, list[Identity]] = {name: [] for name in methods}
            description, console = f"{domain}, {batch} at once", Console(stderr=True)
            for i in track(range(rounds + 1), description=description, console=console):
                row = batch * i
                part = prompts[row : row + batch]
                plain, seconds = decode(first.plain, NextToken(), part, sampling, row)
                timed = {PLAIN: seconds}
                answers = {PLAIN: plain}
                for name, (entrant, policy) in methods.items():
                    answers[name], timed[name] = decode(entrant.adapted, policy, part, sampling, row, adaptive=True)
                    # Weights other than the baseline's write a text of their own, which is decoded here without timing.
                    shares = entrant is first or (entrant.is_gated and first.is_gated)
                    own = plain if shares else decode(entrant.plain, NextToken(), part, sampling, row)[0]
                    gaps = [judges[name].after(prompt, sampling, row + j) for j, prompt in enumerate(part)]
                    outputs = zip(answers[name], own, gaps, strict=True)
                    found[name] += [compare(ours, theirs, gap=gap) for ours, theirs, gap in outputs]
                if i:  # the first round warms up and lets the engine measure step times
                    for name, seconds in timed.items():
                        rates[name].append(sum(map(len, answers[name])) / seconds)
            results += [
                {
                    "part": "batches",
                    "prompts": domain,
                    "temperature": sampling.temperature if sampling else 0.0,
                    "batch": batch,
                    "method": name,
                    "tokens_per_second": median(mine),
                    **_against(mine, rates[PLAIN]),
                    **_sameness(found.get(name)),
                }
                for name, mine in rates.items()
            ]
        yield results


def decode(
    model: Model,
    policy: Policy,
    prompts: list[list[int]],
    sampling: Sampling | None,
    first_row: int,
    adaptive: bool = False,
) -> tuple[list[list[int]], float]:
    """(the ids of each answer, seconds). All prompts are decoded together."""
    answers: list[list[int]] = [[] for _ in prompts]
    options: dict[str, Any] = {"sampling": sampling, "first_row": first_row, "adaptive": adaptive}
    started = time.perf_counter()
    for chunk in model.decoder.decode(prompts, policy=policy, max_new_tokens=NEW, **options):
        answers[chunk.row - first_row] += chunk.token_ids
    return answers, time.perf_counter() - started


def of_another_base(entrants: Sequence[Entrant]) -> Entrant | None:
    """The first gated adapter whose base is not the first entrant's (the baseline), or None."""
    bases = [entrant.adapted.mtp and entrant.adapted.mtp.base_hash for entrant in entrants]
    return next((e for e, base in zip(entrants, bases, strict=True) if e.is_gated and base != bases[0]), None)


def _against(mine: list[float], plain: list[float]) -> dict[str, Any]:
    ratio = ratio_interval(list(zip(mine, plain, strict=True)))
    return {"speedup": ratio.median, "interval": ratio.interval}


def _sameness(found: list[Identity] | None) -> dict[str, Any]:
    """Counts for a method that is compared with next-token decoding; empty for the others."""
    if found is None:
        return {}
    return {"answers": len(found), "different": found.count(Identity.DIFFERENT), "ties": found.count(Identity.TIE)}
