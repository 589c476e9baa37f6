"""How answers are sampled in a measurement: one seed per question, the same for every model and policy.

The noise depends on the seed and the position (`decoding/gumbel.py`). With the same seed, `Exact` therefore writes the text
that next-token decoding writes, and that is what "identical" means at a temperature.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from multitoken.decoding.sampling import Sampling
from multitoken.errors import UsageError


def sampling_of(
    temperature: float | None, top_p: float | None = None, top_k: int | None = None, seed: int | None = None
) -> Sampling | None:
    """The sampling that the options ask for; None (greedy) without a temperature or at 0.

    Raises `UsageError` for options that only make sense with a temperature, and `DecodingError` for an invalid number.
    """
    if not temperature:
        given = {"--top-p": top_p, "--top-k": top_k, "--seed": seed}
        names = [f"{name} {value}" for name, value in given.items() if value is not None]
        if names:
            raise UsageError(
                f"{' and '.join(names)}: greedy decoding does not sample; add --temperature 0.8, for example"
            )
        return None
    return Sampling(temperature, seed=0 if seed is None else seed, top_k=top_k, top_p=top_p)


def of_question(sampling: Sampling | None, number: int) -> Sampling | None:
    """The sampling with a seed of its own for each question: with one seed, all would have the same noise at a position."""
    return sampling and replace(sampling, seed=sampling.seed + number)


def generate_options(sampling: Sampling | None, questions: Sequence[int]) -> dict[str, Any]:
    """Options of `Model.generate` for these questions in one batch, each with its own seed. All options are given, because
    without a top_k transformers samples among the 50 likeliest tokens."""
    if sampling is None:
        return {}
    top_p = 1.0 if sampling.top_p is None else sampling.top_p
    seeds = [sampling.seed + number for number in questions]
    return {
        "temperature": sampling.temperature,
        "top_k": sampling.top_k or 0,
        "top_p": top_p,
        "seed": seeds[0] if len(seeds) == 1 else seeds,
    }


def in_words(sampling: Sampling | None) -> str:
    """ "greedy", or "temperature 0.8, top-p 0.95, seed 0"."""
    if sampling is None:
        return "greedy"
    parts = {"temperature": sampling.temperature, "top-p": sampling.top_p, "top-k": sampling.top_k}
    return (
        ", ".join(f"{name} {value:g}" for name, value in parts.items() if value is not None) + f", seed {sampling.seed}"
    )
