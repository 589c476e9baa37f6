"""How much of a block each policy keeps."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multitoken.decoding.failures import DecodingError
from multitoken.decoding.policies import (
    ConfAdapt,
    Exact,
    NextToken,
    StaticK,
    as_numbers,
    kept_many,
    layered_policy,
    make_policy,
    varied,
    with_trained_k,
)

BLOCK = [0.95, 0.9, 0.4, 0.99]


@pytest.mark.parametrize(
    ("policy", "kept"),
    [
        (NextToken(), 1),
        (StaticK(4), 4),
        (ConfAdapt(0.9), 2),
        (ConfAdapt(0.4), 4),
        (ConfAdapt(0.0), 4),
        (ConfAdapt(1.0), 1),
        (Exact(0.5), 2),
        (Exact(0.99), 1),
        (Exact(0.0), 4),
    ],
)
def test_kept(policy, kept: int) -> None:
    """Guards the rule itself: the longest confident *prefix*, not every confident position (0.99 comes after 0.4)."""
    assert policy.kept(BLOCK) == kept


def test_unsure_anchor_is_emitted_alone_by_confadapt_and_never_tested_by_exact() -> None:
    """A next token of low confidence is still the next token. Only under ConfAdapt does it stop the tokens after it."""
    block = [0.1, 0.99, 0.99]
    assert ConfAdapt(0.9).kept(block) == 1
    assert Exact(0.9).kept(block) == 3


@pytest.mark.parametrize("threshold", [-0.1, 1.7, float("nan"), "high", True])
@pytest.mark.parametrize("policy", [ConfAdapt, Exact])
def test_bad_thresholds_are_refused_by_value(policy, threshold) -> None:
    """A threshold of 1.7 would silently decode one token per step."""
    with pytest.raises(DecodingError, match=f"threshold is {threshold!r}"):
        policy(threshold)


def test_options_that_a_policy_does_not_have_are_refused() -> None:
    """An option that is silently ignored lets a user believe that it had an effect."""
    with pytest.raises(DecodingError, match="next-token policy has no threshold"):
        make_policy("next-token", threshold=0.5)
    with pytest.raises(DecodingError, match="static policy needs k"):
        make_policy("static")
    with pytest.raises(DecodingError, match="expected one of next-token, static, confadapt, exact"):
        make_policy("eager")
    assert make_policy("exact", threshold=0.7, k=4) == Exact(0.7, 4)
    assert make_policy("static", k=3) == StaticK(3)


def test_trained_k_is_filled_in_and_is_a_ceiling() -> None:
    """More masks than in training would be fed to a model that never saw that many."""
    assert with_trained_k(Exact(0.5), 8) == Exact(0.5, 8)
    assert with_trained_k(StaticK(3), 8) == StaticK(3)
    with pytest.raises(DecodingError, match=r"k is 9.*up to 8; choose k <= 8"):
        with_trained_k(ConfAdapt(0.9, 9), 8)
    with pytest.raises(DecodingError, match="no mask token"):
        with_trained_k(StaticK(2), 1)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                [
                    NextToken(),
                    StaticK(5),
                    ConfAdapt(0.0),
                    ConfAdapt(0.9),
                    ConfAdapt(1.0),
                    Exact(0.0),
                    Exact(0.9),
                    Exact(1.0),
                ]
            ),
            st.lists(st.sampled_from([0.0, 0.5, 0.9, 0.95, 1.0]), min_size=1, max_size=5),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_kept_many_is_kept(rows) -> None:
    """The rule is written twice, the second time for a batch of blocks under several policies, and both must agree. 0.9
    in float32 is less than 0.9, so a threshold rounded to float32 would accept what `kept` refuses."""
    confidences = np.full((len(rows), 5), -1.0, np.float32)
    for i, (_, block) in enumerate(rows):
        confidences[i, : len(block)] = block
    numbers = [as_numbers(policy) for policy, _ in rows]
    thresholds = np.array([threshold for threshold, _ in numbers])
    kept = kept_many(confidences, thresholds, np.array([tests for _, tests in numbers]))
    assert kept.tolist() == [policy.kept(np.array(block, np.float32).tolist()) for policy, block in rows]


def test_a_default_is_varied_by_what_is_given() -> None:
    """The threshold of one policy does not carry over to another, and options that are not given stay as they are."""
    default = Exact(0.6, k=8)
    assert varied(default) == default
    assert varied(default, threshold=0.8) == Exact(0.8, k=8)
    assert varied(default, "confadapt", k=4) == ConfAdapt(k=4)
    assert varied(default, "exact", k=4) == Exact(0.6, k=4)
    assert layered_policy({"policy": "exact"}, {"policy": "confadapt", "threshold": 0.8}, {"k": 3}) == ConfAdapt(0.8, 3)
    with pytest.raises(DecodingError, match="next-token policy has no threshold"):
        varied(NextToken(), threshold=0.5)
