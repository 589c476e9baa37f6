"""The measurement: every model and policy on the same prompts, one after the other, with one clock.

For each prompt all combinations run in turn, so a machine that slows down slows all of them. The order turns by one
place a prompt, so none always runs on a cache that the same other one left behind.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from multitoken.decoding.policies import NextToken, Policy
from multitoken.decoding.position_bias import most_positions
from multitoken.decoding.sampling import Sampling
from multitoken.errors import DataError, MultitokenError, UsageError

from .identity import Float64Judge, Identity, compare
from .protocols import ModelLike
from .rows import Combination, Outcome, Row, make_row
from .sampled import generate_options, of_question
from .tasks import Task

Progress = Callable[[int, int], None]
"""`progress(done, total)`, called after each counted answer."""

_WARM_UP_TOKENS = 16


@dataclass(frozen=True)
class _Run:
    """A combination and the model and policy to run it with."""

    what: Combination
    model: ModelLike
    policy: Policy


def evaluate(
    models: Mapping[str, ModelLike],
    task: Task,
    policies: Mapping[str, Policy],
    *,
    sampling: Sampling | None = None,
    progress: Progress | None = None,
) -> list[Row]:
    """Rows of every model (one of them labelled "original") with next-token decoding, then with every policy, batch 1.

    `policies` maps the label of a row to its policy. Next-token decoding always runs, once, as the rest is compared
    with it; a model without a mask token runs nothing else. A single model is its own original.
    Greedy, or with `sampling`: question i then has the seed `sampling.seed + i` under every combination.
    Raises `UsageError` for models and policies that cannot be compared and `DataError` for a prompt that cannot be
    answered, both before the measurement begins.
    """
    original = _original_of(models)
    runs = _runs(models, policies, sampling)
    prompt_ids = _encoded(models, task)
    # Not counted: the first answer pays for allocations and kernels. A policy that a model refuses is refused here.
    for run in runs:
        _answer(run, task, 0, min(task.max_new_tokens, _WARM_UP_TOKENS))

    outcomes: dict[Combination, list[Outcome]] = {run.what: [] for run in runs}
    for i, question in enumerate(task.questions):
        turned = runs[i % len(runs) :] + runs[: i % len(runs)]
        for place, run in enumerate(turned, start=1):
            generation = _answer(run, task, i, task.max_new_tokens)
            correct = task.grader.grade(generation.text, question.answer)
            outcomes[run.what].append(Outcome.of(generation, correct))
            if progress is not None:
                progress(i * len(runs) + place, len(task.questions) * len(runs))

    next_token = {run.what.model: outcomes[run.what] for run in runs if run.what.policy == NextToken.name}
    judges = {
        label: Float64Judge(model.hf, model.mtp.mask_token_id if model.mtp is not None else None)
        for label, model in models.items()
    }

    def identities(ours: list[Outcome], label: str) -> list[Identity]:
        gaps = [judges[label].after(ids, of_question(sampling, i)) for i, ids in enumerate(prompt_ids)]
        pairs = zip(ours, next_token[label], gaps, strict=True)
        return [compare(o.token_ids, r.token_ids, gap=gap) for o, r, gap in pairs]

    return [
        make_row(
            task.name,
            what,
            ours,
            next_token[original],
            to_original=identities(ours, original),
            to_own=identities(ours, what.model),
        )
        for what, ours in outcomes.items()
    ]


def _answer(run: _Run, task: Task, i: int, max_new_tokens: int) -> Any:
    # All masks, whatever they cost here: tokens per step are to be the same on every machine.
    question, sampling = task.questions[i].prompt, generate_options(of_question(run.what.sampling, i))
    return run.model.generate(question, policy=run.policy, max_new_tokens=max_new_tokens, adaptive=False, **sampling)


def _original_of(models: Mapping[str, ModelLike]) -> str:
    if len(models) == 1:
        return next(iter(models))
    if "original" not in models:
        raise UsageError(f"the models are {sorted(models)}; expected one of them to be labelled 'original'")
    return "original"


def _runs(models: Mapping[str, ModelLike], policies: Mapping[str, Policy], sampling: Sampling | None) -> list[_Run]:
    adaptive = {label: policy for label, policy in policies.items() if policy.name != NextToken.name}
    if adaptive and all(model.mtp is None for model in models.values()):
        raise UsageError(f"no model here has a mask token, which {', '.join(adaptive)} needs; adapt one first")
    runs: list[_Run] = []
    for model_label, model in models.items():
        chosen: dict[str, Policy] = {NextToken.name: NextToken(), **(adaptive if model.mtp is not None else {})}
        for label, policy in chosen.items():
            k = policy.k if policy.k is not None else _trained_k(model)
            threshold = getattr(policy, "threshold", None)
            runs.append(_Run(Combination(model_label, label, policy.name, threshold, k, sampling), model, policy))
    return runs


def _trained_k(model: ModelLike) -> int:
    return model.mtp.k if model.mtp is not None else 1


def _encoded(models: Mapping[str, ModelLike], task: Task) -> list[list[int]]:
    """Every prompt's ids, after checking that each model can take it and that all models read it alike."""
    if not task.questions:
        raise DataError(f"the task {task.name} has no questions; expected at least one")
    first_label = next(iter(models))
    prompt_ids: list[list[int]] = []
    for number, question in enumerate(task.questions, start=1):
        place = f"question {number} of {task.name}"
        for label, model in models.items():
            try:
                ids = model.encode(question.prompt)
            except (MultitokenError, ValueError) as error:
                raise DataError(f"{place} cannot be read by the {label} model: {error}") from error
            _check_length(len(ids), task.max_new_tokens, model, f"{place}, {label} model")
            if label == first_label:
                prompt_ids.append(ids)
            elif ids != prompt_ids[-1]:
                raise UsageError(
                    f"{place} has other token ids in the {label} model than in the {first_label} model; expected two "
                    "models with one tokenizer, as adapting keeps it: check --original"
                )
    return prompt_ids


def _check_length(length: int, max_new_tokens: int, model: ModelLike, place: str) -> None:
    limit = most_positions(model.hf)
    if limit is not None and length + max_new_tokens > limit:
        raise DataError(
            f"{place}: {length} prompt tokens and {max_new_tokens} new ones are {length + max_new_tokens}, but the "
            f"model has {limit} positions; shorten the prompt or set max_new_tokens to at most {limit - length}"
        )
