"""The policies: how many of a block's tokens are kept. Each policy is a small frozen dataclass.

A block is k predictions: one at the anchor and k - 1 at masks. `kept` takes their confidences, the anchor's first. A policy
that `verifies` keeps the tokens after the anchor's only as drafts, which the next step confirms. Otherwise they are final.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from .failures import DecodingError


def _check_k(k: int | None, smallest: int) -> None:
    if k is not None and (isinstance(k, bool) or not isinstance(k, int) or k < smallest):
        raise DecodingError(f"k is {k!r}; expected a whole number of at least {smallest}")


def _check_threshold(threshold: float) -> None:
    if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not 0.0 <= threshold <= 1.0:
        raise DecodingError(f"threshold is {threshold!r}; expected a number from 0 to 1, such as 0.9")


def _confident(confidences: Sequence[float], threshold: float) -> int:
    """How many confidences reach the threshold before the first that does not."""
    for i, confidence in enumerate(confidences):
        if confidence < threshold:
            return i
    return len(confidences)


@dataclass(frozen=True)
class NextToken:
    """Ordinary decoding: one token per step."""

    name: ClassVar[str] = "next-token"
    verifies: ClassVar[bool] = False
    k: ClassVar[int | None] = 1

    def kept(self, confidences: Sequence[float]) -> int:
        return 1


@dataclass(frozen=True)
class StaticK:
    """Always k tokens per step, even if their confidences are low."""

    k: int

    name: ClassVar[str] = "static"
    verifies: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.k is None:
            raise DecodingError("the static policy needs k, the number of tokens per step, such as k=3")
        _check_k(self.k, smallest=1)

    def kept(self, confidences: Sequence[float]) -> int:
        return len(confidences)


@dataclass(frozen=True)
class _Thresholded:
    """Base class of the policies that have a threshold."""

    threshold: float
    k: int | None = None

    def __post_init__(self) -> None:
        _check_threshold(self.threshold)
        _check_k(self.k, smallest=1)


@dataclass(frozen=True)
class ConfAdapt(_Thresholded):
    """The longest prefix of the block in which every token reaches the threshold, but at least one token (arXiv 2602.06019, 3.3).

    Emitted tokens are final, so the output may differ from next-token decoding. `k=None`: the k that the model was trained for.
    """

    threshold: float = 0.9

    name: ClassVar[str] = "confadapt"
    verifies: ClassVar[bool] = False

    def kept(self, confidences: Sequence[float]) -> int:
        return max(1, _confident(confidences, self.threshold))


@dataclass(frozen=True)
class Exact(_Thresholded):
    """Confident predictions at masks become drafts, which the next step confirms for free. The output is that of next-token
    decoding.

    The anchor's token is the model's own next token, so it is kept without a test. The next step must feed the drafts
    anyway, to overwrite the masks' cache entries, so the logits that confirm them cost nothing. `k=None`: the k that the
    model was trained for.

    branches: the number of further blocks per step. Each follows the drafts before one that may be refused (`branches`), so
    that there are new drafts even after that refusal. Each pass then computes more tokens, but there are fewer passes, and
    the threshold can be lower. None: as many as pay off on this machine, which is measured during decoding; without such
    measurements, no branches.
    """

    threshold: float = 0.5
    branches: int | None = None

    name: ClassVar[str] = "exact"
    verifies: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.branches is not None and (type(self.branches) is not int or self.branches < 0):
            raise DecodingError(f"branches is {self.branches!r}; expected a whole number from 0 up, such as 4")

    def kept(self, confidences: Sequence[float]) -> int:
        return 1 + _confident(confidences[1:], self.threshold)


Policy = NextToken | StaticK | ConfAdapt | Exact
POLICIES: dict[str, type[NextToken] | type[StaticK] | type[ConfAdapt] | type[Exact]] = {
    policy.name: policy for policy in (NextToken, StaticK, ConfAdapt, Exact)
}


POLICY_OPTIONS = ("policy", "threshold", "k", "branches")  # the options that describe a policy: its name and its fields


def as_numbers(policy: Policy) -> tuple[float, bool]:
    """The form in which `kept_many` takes a policy: (threshold, whether the anchor must reach it too)."""
    if isinstance(policy, NextToken):
        return math.inf, False
    if isinstance(policy, StaticK):
        return 0.0, False
    return policy.threshold, isinstance(policy, ConfAdapt)


def kept_many(
    confidences: NDArray[np.float32], thresholds: NDArray[np.float64], tests_anchor: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """`kept` for N blocks at once, each with its own policy. confidences [N, k], a negative number where nothing was fed;
    thresholds [N] in float64, because a float32 one would be a different number. -> [N], at least 1."""
    confident = confidences >= thresholds[:, None]
    confident[:, 0] |= ~tests_anchor
    return np.maximum(np.logical_and.accumulate(confident, 1).sum(1), 1)


def as_options(policy: Policy) -> dict[str, Any]:
    """The policy as a dictionary of options, as in `generation_config.json: mtp`: its name under "policy", and its fields.
    `layered_policy` is the inverse."""
    options = {"policy": policy.name, **asdict(policy)}
    if options.get("branches", 0) is None:
        del options["branches"]  # the version that reads this may not know branches
    return options


def make_policy(
    name: str, *, threshold: float | None = None, k: int | None = None, branches: int | None = None
) -> Policy:
    """The policy of that name. An option that it does not have raises `DecodingError` and is never ignored."""
    if name not in POLICIES:
        raise DecodingError(f"policy is {name!r}; expected one of {', '.join(POLICIES)}")
    policy = POLICIES[name]
    asked = {"threshold": threshold, "k": k, "branches": branches}
    given = {key: value for key, value in asked.items() if value is not None}
    known = {f.name for f in fields(policy)}
    for key in given:
        if key not in known:
            raise DecodingError(f"the {name} policy has no {key}; leave {key}={given[key]!r} out")
    if policy is StaticK and "k" not in given:
        raise DecodingError("the static policy needs k, the number of tokens per step, such as k=3")
    return policy(**given)


def layered_policy(*layers: Mapping[str, Any]) -> Policy:
    """The policy that results from layers of options, each with some of "policy" (a name), "threshold", "k" and "branches". Later
    layers override earlier ones. A layer that names another policy discards the options before it, because one policy's
    threshold does not apply to another."""
    options: dict[str, Any] = {}
    for layer in layers:
        if "policy" in layer and layer["policy"] != options.get("policy"):
            options = {}
        options |= layer
    name = options.pop("policy")
    if not isinstance(name, str):
        raise DecodingError(f"policy is {name!r}; expected its name, such as 'exact'")
    return make_policy(name, **options)


def varied(
    default: Policy,
    name: str | None = None,
    *,
    threshold: float | None = None,
    k: int | None = None,
    branches: int | None = None,
) -> Policy:
    """`default`, with its options replaced by those given here. None: not given."""
    given = {"policy": name, "threshold": threshold, "k": k, "branches": branches}
    says = {key: value for key, value in given.items() if value is not None}
    return layered_policy(as_options(default), says)


def with_trained_k(policy: Policy, trained_k: int) -> Policy:
    """The policy with its k filled in. Raises `DecodingError` if its k is more than the model was trained for."""
    if policy.k is None:
        return replace(policy, k=trained_k)  # pyright: ignore[reportCallIssue]
    if policy.k > trained_k:
        mend = (
            "this model has no mask token: decode with NextToken(), or adapt it first"
            if trained_k == 1
            else f"choose k <= {trained_k}"
        )
        raise DecodingError(f"k is {policy.k}, but this model was trained for k up to {trained_k}; {mend}")
    return policy
