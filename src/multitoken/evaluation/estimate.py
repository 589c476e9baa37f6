"""What adapting would gain, foretold before any training from the model's predictions along its own responses.

Drafts fail at tokens that are hard to foresee. So a response is cut into runs, as a step of Exact would take them: easy
tokens, which are drafted, up to and with the first hard one, which is the model's own choice after its last good draft:

    easy    e e h e h h e e      k = 4
    runs    |e e h|e h|h|e e|    4 runs of 8 tokens: run length 2.0

The run length is what an adaptation would reach whose drafts hold at every easy token and nowhere else. Real ones do
better where a hard token follows from greedy decoding all the same, and worse where an easy token is easy only once the
one before it is known: `gain_calibration` says by how much, and how far that can be trusted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from multitoken.errors import DataError

from .gain_calibration import Calibration
from .own_predictions import OwnPredictions
from .statistics import Interval

EASY = 0.9  # a token is easy if the model gives it at least this probability
FEWEST_PROMPTS = 8  # the spread over prompts cannot be told from fewer
_DRAWS = 2000


@dataclass(frozen=True)
class Summary:
    """What was found along the responses. The first token of a response is not counted: the prefill emits it."""

    prompts: int
    tokens: int
    entropy: float  # nats, mean over the tokens
    probability: float  # mean that the model gave to the tokens it wrote
    easy_share: float
    run_length: float  # mean, from 1 to k


@dataclass(frozen=True)
class Estimate:
    """Tokens per step to expect under Exact 0.5 of a well-trained adaptation, and what it rests on."""

    k: int
    tokens_per_step: float
    interval: Interval  # 95%: the calibration's spread and the prompts'
    summary: Summary
    calibration: str
    extrapolated: bool  # the run length lies outside of what was calibrated


def check_enough(prompts: int) -> None:
    """Raises `DataError` for fewer than `FEWEST_PROMPTS`."""
    if prompts < FEWEST_PROMPTS:
        raise DataError(
            f"an estimate from {prompts} prompts would owe too much to chance: expected at least {FEWEST_PROMPTS}"
        )


def count_runs(easy: Sequence[bool], k: int) -> int:
    """Runs of at most k - 1 easy tokens and one token of either kind, from the front.

    >>> e, h = True, False
    >>> count_runs([e, e, h, e, h, h, e, e], 4), count_runs([e] * 8, 4)
    (4, 2)
    """
    runs = length = 0
    for is_easy in easy:
        length += 1
        if not is_easy or length == k:
            runs, length = runs + 1, 0
    return runs + (length > 0)


def summarise(responses: Sequence[OwnPredictions], k: int) -> Summary:
    """Raises `DataError` where every response ends with its first token, so that nothing is left to predict."""
    entropies = [h for r in responses for h in r.entropies[1:]]
    probabilities = [p for r in responses for p in r.probabilities[1:]]
    if not entropies:
        raise DataError(
            f"the model ends each of its {len(responses)} responses at once: there are no tokens to emit together; "
            "give prompts that it answers"
        )
    n = len(entropies)
    tokens, runs = map(sum, zip(*(_tokens_and_runs(r, k) for r in responses), strict=True))
    easy = sum(p >= EASY for p in probabilities)
    return Summary(len(responses), n, sum(entropies) / n, sum(probabilities) / n, easy / n, tokens / runs)


def estimate(responses: Sequence[OwnPredictions], k: int, calibration: Calibration) -> Estimate:
    """The expected tokens per step with its 95% interval: other prompts of this kind (a bootstrap over the responses)
    and another adaptation (the calibration's spread) in one. The same input gives the same interval.

    Raises `DataError` for fewer than `FEWEST_PROMPTS` responses, or where they are all over at once.
    """
    check_enough(len(responses))
    summary = summarise(responses, k)
    counts = [_tokens_and_runs(r, k) for r in responses]
    random = Random(0)
    draws: list[float] = []
    for _ in range(_DRAWS):
        tokens, runs = map(sum, zip(*random.choices(counts, k=len(counts)), strict=True))
        draws.append(calibration.draw(tokens / runs if runs else 1.0, k, random))
    draws.sort()
    cut = _DRAWS // 40
    return Estimate(
        k,
        calibration.expected(summary.run_length, k),
        Interval(draws[cut], draws[-cut - 1]),
        summary,
        str(calibration),
        not calibration.covers(summary.run_length),
    )


def _tokens_and_runs(response: OwnPredictions, k: int) -> tuple[int, int]:
    easy = [p >= EASY for p in response.probabilities[1:]]
    return len(easy), count_runs(easy, k)
