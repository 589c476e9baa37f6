"""The answers to a few questions side by side, for people to read: the original's and the adapted model's, pass by pass."""

from collections.abc import Mapping
from typing import Any

from multitoken.decoding.policies import ConfAdapt, Exact, NextToken, Policy
from multitoken.decoding.sampling import Sampling

from .journal import Journal
from .protocols import ModelLike, Prompt
from .report import RaceEntry
from .rows import key_of
from .sampled import generate_options
from .tasks import Task

_MOST = 3  # questions


def samples_of(
    models: Mapping[str, ModelLike],
    task: Task,
    policies: Mapping[str, Policy],
    journal: Journal,
    sampling: Sampling | None = None,
) -> list[RaceEntry]:
    """The original's next-token answers, and the adapted model's under the first Exact and the first ConfAdapt of `policies`.
    They are for the first question, and for the first ones where these answers differ. Each is generated once more, alone,
    and timed."""
    shown: list[tuple[str, str, Policy]] = [
        ("original" if "original" in models else "adapted", "next-token", NextToken())
    ]
    for kind in (Exact, ConfAdapt):
        first = next(((label, policy) for label, policy in policies.items() if isinstance(policy, kind)), None)
        if first is not None and models["adapted"].mtp is not None:
            shown.append(("adapted", *first))
    entries: list[RaceEntry] = []
    for i in _telling(shown, journal, len(task.questions)):
        prompt = task.questions[i].prompt
        options: dict[str, Any] = {"max_new_tokens": task.max_new_tokens, "adaptive": False}
        options |= generate_options(sampling, [i])
        for model, label, policy in shown:
            answer = models[model].generate(prompt, policy=policy, **options)
            entries.append(RaceEntry(_text(prompt), f"{model}, {label}", answer))
    return entries


def _telling(shown: list[tuple[str, str, Policy]], journal: Journal, questions: int) -> list[int]:
    """The first question and further ones, up to `_MOST` in all: those where answers differ, or else the next ones."""
    known = journal.outcomes()

    def differs(i: int) -> bool:
        keys = [(key_of(model, label), i) for model, label, _ in shown]
        return len({known[key].token_ids for key in keys if key in known}) > 1

    others = sorted(
        range(1, questions), key=lambda i: not differs(i)
    )  # a stable sort: questions whose answers differ come first, in their order
    return sorted([0, *others[: _MOST - 1]])


def _text(prompt: Prompt) -> str:
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{message['role']}: {message['content']}" for message in prompt)
