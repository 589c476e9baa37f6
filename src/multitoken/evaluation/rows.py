"""One measured combination of model and policy: a row of `results.json`, and how it is computed from single answers."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from multitoken.decoding.sampling import Sampling

from .graders import Grade
from .identity import Identity
from .protocols import GenerationLike
from .sampled import in_words
from .statistics import (
    Interval,
    mcnemar,
    mean_interval,
    paired_difference,
    ratio_interval,
    ratio_of_sums_interval,
)


@dataclass(frozen=True)
class Row:
    """A (model, policy) pair on a task. Shares are fractions (0.97), speeds are tokens per second, intervals are 95%.

    "Original" is the original model decoded one token per step on the same prompts; "own" is this row's model decoded in
    the same way. Ties are counted separately: an output is identical, a tie (see `identity`) or different. Where answers
    are sampled, all answers to one question have the same seed.
    """

    task: str
    model: str
    policy: str
    threshold: float | None
    k: int
    prompts: int
    accuracy: float | None  # or the mean score; None: the task has no grader
    identical_to_original: int
    tokens_per_step: float  # 0.0 where every answer ended within its prefill
    tokens_per_second: float
    forward_passes: int  # prefills included
    label: str
    tokens: int  # EOS included
    seconds: float
    ties: int
    identical_to_own_next_token: int
    own_ties: int
    accuracy_interval: Interval | None
    accuracy_change: float | None  # against the original, over the prompts where the grader judges both answers
    accuracy_change_interval: Interval | None
    speedup: float  # median over the batches of the original's seconds per token divided by ours
    speedup_interval: Interval | None  # None below six batches
    sampling: Sampling | None = None  # None: greedy; its seed is the first question's, and each next one's is one more
    batch_size: int = 1  # answers decoded together
    tokens_per_step_interval: Interval | None = None  # None: every answer ended within its prefill
    accuracy_p_value: float | None = None  # McNemar's exact test against the original
    perplexity: float | None = None  # of the answers under the original; measured where there is no grader
    steps_by_length: tuple[int, ...] = ()  # how many steps after the prefill wrote 1, 2, 3, ... tokens
    repetition: float = 0.0  # the share of runs of four tokens that the same answer already had
    original_tokens: int = 0  # of the original's answers to the same prompts
    original_repetition: float = 0.0

    @property
    def heading(self) -> str:
        """What rows of one task have in common: "sums, 1,500 prompts", and how they were sampled, if they were."""
        how = f", {in_words(self.sampling)}" if self.sampling else ""
        how += f", batches of {self.batch_size}" if self.batch_size > 1 else ""
        return f"{self.task}, {self.prompts:,} prompts{how}"


@dataclass(frozen=True)
class Outcome:
    """What is kept of one answer: a few numbers without its confidences, so that thousands fit in memory. `seconds` is its
    share of the time of its batch."""

    token_ids: tuple[int, ...]
    prefill_tokens: int
    forward_passes: int
    seconds: float
    correct: Grade
    batch: int
    lengths: tuple[int, ...] = ()  # the tokens of every pass; empty: not known

    @classmethod
    def of(cls, generation: GenerationLike, correct: Grade, *, seconds: float, batch: int) -> "Outcome":
        lengths = tuple(len(chunk.token_ids) for chunk in generation.chunks)
        return cls(generation.token_ids, lengths[0], generation.forward_passes, seconds, correct, batch, lengths)


@dataclass(frozen=True)
class Combination:
    """What a row is about: the model's and the policy's names and numbers, and how tokens are sampled."""

    model: str
    label: str
    policy: str
    threshold: float | None
    k: int
    sampling: Sampling | None = None

    @property
    def key(self) -> str:
        """Its name in a journal."""
        return key_of(self.model, self.label)


def key_of(model: str, label: str) -> str:
    """The name of a model under a policy in a journal, from their labels."""
    return f"{model}: {label}"


def make_row(
    task: str,
    what: Combination,
    ours: Sequence[Outcome],
    original: Sequence[Outcome],
    to_original: Sequence[Identity],
    to_own: Sequence[Identity],
    *,
    batch_size: int = 1,
    perplexity: float | None = None,
) -> Row:
    """The row of one combination from its answers and the original's, prompt by prompt in the same order."""
    tokens = sum(len(o.token_ids) for o in ours)
    seconds = sum(o.seconds for o in ours)
    forward_passes = sum(o.forward_passes for o in ours)
    grades = [o.correct for o in ours if o.correct is not None]
    graded = [(r.correct, o.correct) for r, o in zip(original, ours, strict=True)]
    both = [(before, after) for before, after in graded if before is not None and after is not None]
    before, after = [before for before, _ in both], [after for _, after in both]
    change = paired_difference(before, after) if both else None
    speedup = ratio_interval(seconds_per_token(original, ours))
    steps = [(len(o.token_ids) - o.prefill_tokens, o.forward_passes - 1) for o in ours]
    return Row(
        task=task,
        model=what.model,
        policy=what.policy,
        threshold=what.threshold,
        k=what.k,
        prompts=len(ours),
        accuracy=sum(grades) / len(grades) if grades else None,
        identical_to_original=to_original.count(Identity.IDENTICAL),
        tokens_per_step=_tokens_per_step(ours),
        tokens_per_second=tokens / seconds,
        forward_passes=forward_passes,
        label=what.label,
        tokens=tokens,
        seconds=seconds,
        ties=to_original.count(Identity.TIE),
        identical_to_own_next_token=to_own.count(Identity.IDENTICAL),
        own_ties=to_own.count(Identity.TIE),
        accuracy_interval=mean_interval(grades) if grades else None,
        accuracy_change=change.value if change else None,
        accuracy_change_interval=change.interval if change else None,
        speedup=speedup.median,
        speedup_interval=speedup.interval,
        sampling=what.sampling,
        batch_size=batch_size,
        tokens_per_step_interval=ratio_of_sums_interval(steps) if any(n for _, n in steps) else None,
        accuracy_p_value=mcnemar(before, after) if both else None,
        perplexity=perplexity,
        steps_by_length=_steps_by_length(ours),
        repetition=repetition(o.token_ids for o in ours),
        original_tokens=sum(len(o.token_ids) for o in original),
        original_repetition=repetition(o.token_ids for o in original),
    )


def repetition(answers: Iterable[Sequence[int]], run: int = 4) -> float:
    """The share of all runs of `run` successive tokens that the same answer already had; 0.0 where answers are shorter."""
    runs = again = 0
    for ids in answers:
        found = [tuple(ids[i : i + run]) for i in range(len(ids) - run + 1)]
        runs += len(found)
        again += len(found) - len(set(found))
    return again / runs if runs else 0.0


def _steps_by_length(outcomes: Sequence[Outcome]) -> tuple[int, ...]:
    lengths = Counter(length for o in outcomes for length in o.lengths[1:])
    return tuple(lengths[n] for n in range(1, max(lengths, default=0) + 1))


def seconds_per_token(original: Sequence[Outcome], ours: Sequence[Outcome]) -> list[tuple[float, float]]:
    """One pair per batch: answers decoded together are timed together, so a batch is one observation. A measurement
    that was resumed by another number of processes may have other batches in its second half: then an observation is
    what two batches share."""
    spent: dict[tuple[int, int], list[float]] = {}
    for r, o in zip(original, ours, strict=True):
        total = spent.setdefault((r.batch, o.batch), [0.0] * 4)
        for i, value in enumerate((r.seconds, len(r.token_ids), o.seconds, len(o.token_ids))):
            total[i] += value
    return [(a / b, c / d) for a, b, c, d in spent.values()]


def _tokens_per_step(outcomes: Sequence[Outcome]) -> float:
    """Tokens after the prefill over forward passes after the prefill, each summed over the prompts."""
    tokens = sum(len(o.token_ids) - o.prefill_tokens for o in outcomes)
    steps = sum(o.forward_passes - 1 for o in outcomes)
    return tokens / steps if steps else 0.0
