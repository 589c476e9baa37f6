"""Policies as written on a command line, and as named in tables."""

import pytest

from multitoken.decoding.policies import ConfAdapt, Exact, NextToken, StaticK, as_options, make_policy
from multitoken.errors import MultitokenError
from multitoken.evaluation.measure import label_of, parse_policy


@pytest.mark.parametrize(
    ("text", "policy", "label"),
    [
        ("exact:0.5", Exact(0.5), "Exact 0.5"),
        ("exact:0.3:4", Exact(0.3, branches=4), "Exact 0.3, 4 branches"),
        ("confadapt:0.9", ConfAdapt(0.9), "ConfAdapt 0.9"),
        ("static:3", StaticK(3), "static 3"),
        ("next-token", NextToken(), "next token"),
    ],
)
def test_what_is_said_is_what_is_named(text: str, policy, label: str) -> None:
    assert parse_policy(text) == policy
    assert label_of(policy) == label
    options = as_options(policy)
    assert make_policy(options.pop("policy"), **options) == policy


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("exact:high", "'high' is not a number"),
        ("exact:0.5:many", "'0.5:many' is not a number"),
        ("confadapt:0.9:2", "confadapt policy has no branches"),
        ("exact:0.5:-1", "branches is -1"),
    ],
)
def test_what_cannot_be_says_why(text: str, says: str) -> None:
    with pytest.raises(MultitokenError, match=says):
        parse_policy(text)


def test_no_branches_are_not_written_down() -> None:
    """Versions from before branches must be able to read the checkpoints of policies without them."""
    assert "branches" not in as_options(Exact(0.5))
    assert as_options(Exact(0.5, branches=2))["branches"] == 2
