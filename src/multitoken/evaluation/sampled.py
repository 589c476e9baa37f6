"""How answers are sampled in a measurement: one seed a question, the same for every model and policy.

Noise belongs to a seed and a position (`decoding/gumbel.py`), so with one seed `Exact` writes the text that next-token
decoding writes, and that is what "identical" means at a temperature.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from multitoken.decoding.sampling import Sampling
from multitoken.errors import UsageError


def sampling_of(
    temperature: float | None, top_p: float | None = None, top_k: int | None = None, seed: int | None = None
) -> Sampling | None:
    """The sampling that is asked for; None, greedy, without a temperature or at 0.

    Raises `UsageError` for what only makes sense beside a temperature, and `DecodingError` for a number that cannot be.
    """
    if not temperature:
        given = {"--top-p": top_p, "--top-k": top_k, "--seed": seed}
        names = [f"{name} {value}" for name, value in given.items() if value is not None]
        if names:
            raise UsageError(
                f"{' and '.join(names)}: greedy decoding draws nothing; add --temperature 0.8, for example"
            )
        return None
    return Sampling(temperature, seed=0 if seed is None else seed, top_k=top_k, top_p=top_p)


def of_question(sampling: Sampling | None, number: int) -> Sampling | None:
    """With a seed of its own for each question: under one seed all would share their noise, position by position."""
    return sampling and replace(sampling, seed=sampling.seed + number)


def generate_options(sampling: Sampling | None, questions: Sequence[int]) -> dict[str, Any]:
    """For `Model.generate`, for these questions side by side, each with its own seed. Everything is said: transformers samples among
    the 50 likeliest tokens where top_k is not."""
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
