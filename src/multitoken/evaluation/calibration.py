"""The fastest policy within a loss that the user allows, promised at a stated confidence.

A random half of the prompts is for searching. Every candidate answers it, and those that no other beats in both speed and
loss are lined up, the safest first. The other half is for confirming. Candidates are tested in that order, and the first
failure ends the tests. Tests in an order that was fixed beforehand need no correction for their number (fixed-sequence
testing, as in "Learn then Test", arXiv 2110.01052): the chance that the chosen candidate loses more than allowed is at most
1 - confidence. A policy that confirms every token with the original's own weights needs no test.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Literal

from multitoken.decoding.policies import ConfAdapt, Exact, Policy
from multitoken.errors import DataError, UsageError

from .answers import Progress, Run, answer_all
from .identity import Identity, Judge, compare
from .journal import Journal
from .promise import fewest_prompts, p_value, prompts_needed, upper_bound
from .protocols import ModelLike
from .rows import Combination, Outcome, seconds_per_token
from .run import check_batch_size, encoded, runs_of
from .statistics import ratio_interval
from .tasks import Task

_THRESHOLDS: Mapping[type[ConfAdapt] | type[Exact], tuple[float, ...]] = {
    ConfAdapt: (0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999),
    Exact: (0.3, 0.5, 0.7, 0.9),
}
_FEWEST_PROMPTS = 20
_USUAL_PROMPTS = 100
ORDER = "calibration"
"""What a journal says about the order of a calibration's questions, which is random and always the same."""
Loss = Callable[[int, Outcome, Outcome], float]
"""`loss(question, the original's outcome, ours)`."""


@dataclass(frozen=True)
class Allowed:
    """What may be lost compared with the original's next-token decoding: grades ("drop") or identical outputs ("different"),
    as a share of the prompts (0.01 is one point)."""

    kind: Literal["drop", "different"]
    share: float

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise UsageError(f"the allowed loss is {self.share}; expected a number between 0 and 1, such as 0.01")


@dataclass(frozen=True)
class Candidate:
    """A policy on the searching half and, if it got that far, on the confirming half (`confirmed_loss`, `at_most`,
    `promised`)."""

    policy: Policy
    label: str
    tokens_per_second: float
    tokens_per_step: float
    loss: float
    confirmed_loss: float | None = None
    at_most: float | None = None
    promised: bool = False
    needed: int | None = None  # prompts in all that would promise it, if losses stay as frequent


@dataclass(frozen=True)
class Calibration:
    """The result. `chosen` is None where nothing could be promised. `candidates` are sorted, the fastest first. `as_fast`: the
    label of the next fastest that could have been chosen too, if the difference in speed may be chance."""

    allowed: Allowed | None
    confidence: float
    prompts: int
    candidates: tuple[Candidate, ...]
    chosen: Candidate | None
    as_fast: str | None = None

    @property
    def fewest(self) -> int | None:
        """The fewest prompts, both halves together, that could promise what is allowed; None if no promise was asked for."""
        return None if self.allowed is None else 2 * fewest_prompts(self.allowed.share, self.confidence)


def candidates_of(
    trained_k: int, kinds: Sequence[type[ConfAdapt] | type[Exact]], thresholds: Sequence[float] | None = None
) -> list[Policy]:
    """Policies of these kinds: each threshold with the k that the model was trained for, and with half of it. thresholds:
    used instead of the usual ones."""
    ks = [trained_k, *([trained_k // 2] if trained_k >= 4 else [])]
    return [kind(threshold, k=k) for kind in kinds for threshold in thresholds or _THRESHOLDS[kind] for k in ks]


def usual_prompts(allowed: Allowed | None, confidence: float) -> int:
    """How many prompts of an embedded task are asked if no number is given: as many as any promise takes, at least 100."""
    _check_confidence(confidence)
    return _USUAL_PROMPTS if allowed is None else max(_USUAL_PROMPTS, 2 * fewest_prompts(allowed.share, confidence))


def _check_confidence(confidence: float) -> None:
    if not 0.5 <= confidence < 1:
        raise UsageError(f"confidence is {confidence}; expected a number from 0.5 to below 1, such as 0.95")


def check_models(models: Mapping[str, ModelLike], task: Task, policies: Mapping[str, Policy]) -> None:
    """Raises `UsageError` or `DataError` for models that cannot be calibrated on this task with these policies."""
    _runs(models, policies)
    encoded(models, task)


def check_calibration(task: Task, allowed: Allowed | None, confidence: float, batch_size: int = 32) -> None:
    """Raises `UsageError` or `DataError` for a request that no calibration can answer."""
    _check_confidence(confidence)
    check_batch_size(batch_size)
    if len(task.questions) < _FEWEST_PROMPTS:
        raise DataError(f"{task.name} has {len(task.questions)} prompts; calibration needs at least {_FEWEST_PROMPTS}")
    if allowed is not None and allowed.kind == "drop" and task.grader.name == "none":
        raise UsageError(
            "a drop in accuracy needs answers to grade against; give them, or allow differences by min_identical=0.99"
        )


def calibrate(
    models: Mapping[str, ModelLike],
    task: Task,
    policies: Mapping[str, Policy],
    allowed: Allowed | None,
    *,
    confidence: float = 0.95,
    batch_size: int = 32,
    journal: Journal | None = None,
    progress: Progress | None = None,
) -> Calibration:
    """The fastest of `policies` (by label) for the model "adapted" that loses at most what is `allowed` compared with
    "original". Without an "original", the comparison is with the model's own next-token decoding, which is the original's
    where the adapter acts at masks only.

    allowed=None: the policies change no output, and the one that is fastest on all prompts is chosen. journal: where answers
    are written as they come, and where existing answers are taken from; its questions are numbered in `ORDER`. Raises
    `UsageError` and `DataError` before anything is decoded.
    """
    check_calibration(task, allowed, confidence, batch_size)
    plain, runs = _runs(models, policies)
    questions = list(task.questions)
    Random(0).shuffle(questions)
    task = replace(task, questions=tuple(questions))
    number = len(questions)
    middle = number if allowed is None else number // 2
    searching, confirming = range(middle), range(middle, number)
    loss = _loss(models, allowed, task)

    def lost(places: range, original: Sequence[Outcome], ours: Sequence[Outcome]) -> list[float]:
        return [loss(*each) for each in zip(places, original, ours, strict=True)]

    answers = len(searching) * (1 + len(runs))
    found = answer_all(
        [plain, *runs], task, questions=searching, batch_size=batch_size, journal=journal, progress=progress
    )
    tried = [
        (run, _candidate(run, found[run.what], lost(searching, found[plain.what], found[run.what]))) for run in runs
    ]
    tried.sort(key=lambda pair: -pair[1].tokens_per_second)
    if allowed is None:
        best = tried[0][1]
        return Calibration(None, confidence, number, tuple(c for _, c in tried), best, _as_fast(best, tried, found))

    known = {c.label: _lossless(c) for run, c in tried if run.policy.verifies and "original" not in models}
    chosen = next((known[c.label] for _, c in tried if c.label in known), None)
    line = [(run, c) for run, c in _undominated(tried) if c.loss <= allowed.share and c.label not in known]
    more = len(confirming)

    def confirm(run: Run, before: int) -> list[Outcome]:
        def told(done: int, _: int) -> None:
            if progress is not None:
                progress(answers + before * more + done, answers + (1 + len(line)) * more)

        return answer_all([run], task, questions=confirming, batch_size=batch_size, journal=journal, progress=told)[
            run.what
        ]

    original = confirm(plain, 0) if line else []
    for before, (run, candidate) in enumerate(reversed(line), 1):  # the slowest, which loses least, first
        tested = _tested(candidate, lost(confirming, original, confirm(run, before)), allowed, confidence)
        known[tested.label] = tested
        if not tested.promised:
            break
        if chosen is None or tested.tokens_per_second > chosen.tokens_per_second:
            chosen = tested
    rival = chosen and _as_fast(
        chosen, [(run, c) for run, c in tried if c.label in known and known[c.label].promised], found
    )
    return Calibration(allowed, confidence, number, tuple(known.get(c.label, c) for _, c in tried), chosen, rival)


def _as_fast(
    chosen: Candidate, able: Sequence[tuple[Run, Candidate]], found: Mapping[Combination, Sequence[Outcome]]
) -> str | None:
    """The next fastest after the chosen one of those that could be chosen, if these answers do not tell which is faster."""
    place = next(i for i, (_, c) in enumerate(able) if c.label == chosen.label)
    if place + 1 == len(able):
        return None
    ours, other = able[place][0], able[place + 1][0]
    lead = ratio_interval(seconds_per_token(found[other.what], found[ours.what]))
    return other.what.label if lead.interval is None or lead.interval.low <= 1 else None


def _lossless(candidate: Candidate) -> Candidate:
    """The candidate of a policy that confirms every token with the original's own weights: it needs no test."""
    return replace(candidate, at_most=0.0, promised=True)


def _tested(candidate: Candidate, lost: Sequence[float], allowed: Allowed, confidence: float) -> Candidate:
    needed = prompts_needed(lost, allowed.share, confidence)
    return replace(
        candidate,
        confirmed_loss=sum(lost) / len(lost),
        at_most=upper_bound(lost, confidence),
        promised=p_value(lost, allowed.share) <= 1 - confidence,
        needed=needed and 2 * needed,
    )


def _undominated(tried: Sequence[tuple[Run, Candidate]]) -> list[tuple[Run, Candidate]]:
    """Of candidates sorted by speed, the fastest and each slower one that loses less than all the faster ones."""
    kept: list[tuple[Run, Candidate]] = []
    for run, candidate in tried:
        if not kept or candidate.loss < kept[-1][1].loss:
            kept.append((run, candidate))
    return kept


def _runs(models: Mapping[str, ModelLike], policies: Mapping[str, Policy]) -> tuple[Run, list[Run]]:
    """The original's next-token decoding, and the adapted model under every policy."""
    adapted = models["adapted"]
    if adapted.mtp is None:
        raise UsageError("this model has no mask token: there is nothing to calibrate; adapt it first")
    runs = runs_of(models, policies)
    first = "original" if "original" in models else "adapted"
    plain = next(run for run in runs if run.what.model == first and run.what.policy == "next-token")
    mine = [run for run in runs if run.what.model == "adapted" and run.what.policy != "next-token"]
    return plain, mine


def _candidate(run: Run, ours: Sequence[Outcome], lost: Sequence[float]) -> Candidate:
    tokens, seconds = sum(len(o.token_ids) for o in ours), sum(o.seconds for o in ours)
    steps = sum(o.forward_passes - 1 for o in ours)
    behind = sum(len(o.token_ids) - o.prefill_tokens for o in ours)
    return Candidate(
        policy=run.policy,
        label=run.what.label,
        tokens_per_second=tokens / seconds,
        tokens_per_step=behind / steps if steps else 0.0,
        loss=sum(lost) / len(lost),
    )


def _loss(models: Mapping[str, ModelLike], allowed: Allowed | None, task: Task) -> Loss:
    """How one answer's loss is counted. A tie between two tokens is not a difference."""
    if allowed is not None and allowed.kind == "drop":
        return lambda i, original, ours: float(original.correct or 0) - float(ours.correct or 0)
    model = models.get("original", models["adapted"])
    mask = models["adapted"].mtp.mask_token_id
    judge = Judge(model.hf, mask)
    prompts = encoded(models, task) if task.questions else []

    def different(i: int, original: Outcome, ours: Outcome) -> float:
        same = compare(ours.token_ids, original.token_ids, gap=judge.after(prompts[i]))
        return float(same is Identity.DIFFERENT)

    return different
