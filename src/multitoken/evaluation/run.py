"""The measurement: every model and policy on the same prompts, compared with the original's next-token decoding."""

import math
from collections.abc import Mapping, Sequence

import torch

from multitoken.decoding.policies import Exact, NextToken, Policy, with_trained_k
from multitoken.decoding.positions import position_limit
from multitoken.decoding.sampling import Sampling
from multitoken.errors import DataError, MultitokenError, UsageError

from .answers import Progress, Run, answer_all
from .identity import Identity, Judge, compare
from .journal import Journal
from .protocols import ModelLike
from .rows import Combination, Outcome, Row, make_row
from .sampled import of_question
from .tasks import Task


def evaluate(
    models: Mapping[str, ModelLike],
    task: Task,
    policies: Mapping[str, Policy],
    *,
    sampling: Sampling | None = None,
    batch_size: int = 1,
    journal: Journal | None = None,
    progress: Progress | None = None,
) -> list[Row]:
    """Rows of every model (one of them labelled "original") with next-token decoding, then with every policy.

    `policies` maps the label of a row to its policy. Next-token decoding always runs, once, because all others are compared
    with it. A model without a mask token runs nothing else. A single model is its own original.
    Decoding is greedy unless `sampling` is given: question i then has the seed `sampling.seed + i` under every combination.
    `batch_size` questions are answered together. `journal`: where answers are written as they come, and where existing
    answers are taken from.
    Raises `UsageError` for models and policies that cannot be compared and `DataError` for a prompt that cannot be
    answered, both before the measurement begins.
    """
    runs, prompt_ids = checked(models, task, policies, sampling=sampling, batch_size=batch_size)
    original = _original_of(models)
    outcomes = answer_all(runs, task, batch_size=batch_size, journal=journal, progress=progress)

    next_token = {run.what.model: outcomes[run.what] for run in runs if run.what.policy == NextToken.name}
    judges = {
        label: Judge(model.hf, model.mtp.mask_token_id if model.mtp is not None else None)
        for label, model in models.items()
    }

    def identities(ours: list[Outcome], label: str) -> list[Identity]:
        gaps = [judges[label].after(ids, of_question(sampling, i)) for i, ids in enumerate(prompt_ids)]
        pairs = zip(ours, next_token[label], gaps, strict=True)
        return [compare(o.token_ids, r.token_ids, gap=gap) for o, r, gap in pairs]

    graded = any(o.correct is not None for o in next_token[original])
    loss_of = None if graded else _Loss(models[original].hf)
    return [
        make_row(
            task.name,
            what,
            ours,
            next_token[original],
            to_original=identities(ours, original),
            to_own=identities(ours, what.model),
            batch_size=batch_size,
            perplexity=loss_of.perplexity(prompt_ids, [o.token_ids for o in ours]) if loss_of else None,
        )
        for what, ours in outcomes.items()
    ]


def checked(
    models: Mapping[str, ModelLike],
    task: Task,
    policies: Mapping[str, Policy],
    *,
    sampling: Sampling | None = None,
    batch_size: int = 1,
) -> tuple[list[Run], list[list[int]]]:
    """What `evaluate` will run, and every prompt's ids. Raises what it raises before anything is decoded."""
    check_batch_size(batch_size)
    _original_of(models)
    return runs_of(models, policies, sampling), encoded(models, task)


def check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise UsageError(f"batch_size is {batch_size}; expected at least 1")


class _Loss:
    """How unlikely texts are under a model."""

    def __init__(self, hf: torch.nn.Module) -> None:
        self._model = hf
        self._known: dict[tuple[int, tuple[int, ...]], float] = {}

    def perplexity(self, prompts: Sequence[Sequence[int]], answers: Sequence[tuple[int, ...]]) -> float:
        """exp of the mean negative log-likelihood of the answers' tokens after their prompts."""
        for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            if (i, answer) not in self._known:  # policies often give the same answer
                self._known[i, answer] = self._of(prompt, answer)
        total = sum(self._known[i, answer] for i, answer in enumerate(answers))
        return math.exp(total / sum(map(len, answers)))

    @torch.inference_mode()
    def _of(self, prompt: Sequence[int], answer: Sequence[int]) -> float:
        """The sum over an answer's tokens, in nats."""
        ids = torch.tensor([[*prompt, *answer]], device=next(self._model.parameters()).device)
        logits = self._model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
        return float(torch.nn.functional.cross_entropy(logits.float(), ids[0, len(prompt) :], reduction="sum"))


def _original_of(models: Mapping[str, ModelLike]) -> str:
    if len(models) == 1:
        return next(iter(models))
    if "original" not in models:
        raise UsageError(f"the models are {sorted(models)}; expected one of them to be labelled 'original'")
    return "original"


def branches_said(policy: Policy) -> str:
    """The part of a policy's name that gives its branches, if it has any: ", 4 branches"."""
    return f", {policy.branches} branches" if isinstance(policy, Exact) and policy.branches else ""


def runs_of(
    models: Mapping[str, ModelLike], policies: Mapping[str, Policy], sampling: Sampling | None = None
) -> list[Run]:
    """Every model with next-token decoding and then, if it has a mask token, with every policy."""
    adaptive = {label: policy for label, policy in policies.items() if policy.name != NextToken.name}
    if adaptive and all(model.mtp is None for model in models.values()):
        raise UsageError(f"no model here has a mask token, which {', '.join(adaptive)} needs; adapt one first")
    runs: list[Run] = []
    for model_label, model in models.items():
        chosen: dict[str, Policy] = {NextToken.name: NextToken(), **(adaptive if model.mtp is not None else {})}
        for label, policy in chosen.items():
            k = with_trained_k(policy, _trained_k(model)).k or 1  # raises for a k that is too large
            threshold = getattr(policy, "threshold", None)
            name = policy.name + branches_said(policy)
            runs.append(Run(Combination(model_label, label, name, threshold, k, sampling), model, policy))
    return runs


def _trained_k(model: ModelLike) -> int:
    return model.mtp.k if model.mtp is not None else 1


def encoded(models: Mapping[str, ModelLike], task: Task) -> list[list[int]]:
    """Every prompt's ids, after checking that each model can take it and that all models encode it in the same way."""
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
                    f"{place} has different token ids in the {label} model and in the {first_label} model; expected two "
                    "models with the same tokenizer, which adapting does not change: check --original"
                )
    return prompt_ids


def _check_length(length: int, max_new_tokens: int, model: ModelLike, place: str) -> None:
    limit = position_limit(model.hf)
    if limit is not None and length + max_new_tokens > limit:
        raise DataError(
            f"{place}: {length} prompt tokens and {max_new_tokens} new ones are {length + max_new_tokens}, but the "
            f"model has {limit} positions; shorten the prompt or set max_new_tokens to at most {limit - length}"
        )
