"""`accept` must do for every row of a batch what `Row.take` does for one. Needs no vLLM."""

import doctest
import random

import numpy as np

from multitoken.decoding.policies import ConfAdapt, Exact, NextToken, StaticK, as_numbers
from multitoken.decoding.row import Request, Row
from multitoken.vllm import accept as module
from multitoken.vllm.accept import Rules, accept, propose

MASK, EOS = 99, 7
POLICIES = [NextToken(), StaticK(3), ConfAdapt(0.5, 4), ConfAdapt(0.0, 4), Exact(0.5, 4), Exact(0.0, 3), Exact(1.0, 4)]
WIDTH = 7


def rules_of(policies) -> Rules:
    numbers = [as_numbers(policy) for policy in policies]
    return Rules(
        np.array([threshold for threshold, _ in numbers]),
        np.array([tests for _, tests in numbers]),
        np.array([policy.verifies for policy in policies]),
        np.array([policy.k for policy in policies]),
    )


def test_a_batch_is_its_rows() -> None:
    """Two thousand random steps of random policies: tokens, drafts and the masks fed next are those of `Row`."""
    rng = random.Random(0)
    for _ in range(400):
        rows = [Row(i, Request([1, 2], rng.choice(POLICIES), rng.randint(1, 12), frozenset([EOS]))) for i in range(5)]
        tokens = np.zeros((5, WIDTH), np.int64)
        confidences = np.full((5, WIDTH), -1.0, np.float32)
        fed = np.full((5, WIDTH - 1), -1)
        chunks = []
        for i, row in enumerate(rows):
            if row.policy.verifies:
                row.drafts = [rng.randint(0, 3) for _ in range(min(rng.randint(0, 3), row.remaining - 1))]
            masks = min(row.room_for_masks(None), WIDTH - 1 - len(row.drafts))
            n = len(row.drafts) + 1 + masks
            chosen = [rng.choice([0, 1, 2, 3, EOS]) for _ in range(n)]
            for j, draft in enumerate(row.drafts):
                if rng.random() < 0.7:
                    chosen[j] = draft
            sure = np.array([rng.choice([0.2, 0.5, 0.8, 1.0]) for _ in range(n)], np.float32)
            tokens[i, :n], confidences[i, :n] = chosen, sure
            fed[i, : n - 1] = [*row.drafts, *[MASK] * masks]
            held = row.held(chosen)
            front = n if held == len(row.drafts) else held + 1  # masks after a refused draft say nothing
            chunks.append((row.remaining, row.take(chosen[:front], sure.tolist()[:front])))
        rules = rules_of([row.policy for row in rows])
        accepted = accept(tokens, confidences, fed, MASK, rules)
        # vLLM itself ends the output at EOS and at the requested length. The rest must be the chunk's.
        emitted = [[t for t in ids if t >= 0] for ids in accepted.emitted.tolist()]
        for ids, (_, chunk) in zip(emitted, chunks, strict=True):
            assert tuple(ids[: len(chunk.token_ids)]) == chunk.token_ids
            assert len(ids) == len(chunk.token_ids) or chunk.finish == "eos"
        room = np.array([before - len(ids) for (before, _), ids in zip(chunks, emitted, strict=True)])
        ids, number = propose(accepted.drafts, rules, room, MASK, WIDTH - 1, np.full((5, 1), EOS), WIDTH)
        for row, next_ids, n in zip(rows, ids.tolist(), number.tolist(), strict=True):
            if not row.done:
                masks = min(row.room_for_masks(None), WIDTH - 1 - len(row.drafts))
                assert next_ids[:n] == [*row.drafts, *[MASK] * masks]


def test_example() -> None:
    assert doctest.testmod(module).failed == 0


def test_a_block_gives_no_more_than_k() -> None:
    """This holds whatever was fed: each request has its own k, and a step's masks may have been laid out for another
    one."""
    tokens, sure = np.array([[1, 2, 3, 4]]), np.ones((1, 4), np.float32)
    fed = np.full((1, 3), MASK)
    assert accept(tokens, sure, fed, MASK, rules_of([ConfAdapt(0.5, 2)])).emitted.tolist() == [[1, 2, -1, -1]]
    assert accept(tokens, sure, fed, MASK, rules_of([Exact(0.5, 3)])).drafts.tolist() == [[2, 3, -1, -1]]
    assert accept(tokens, sure, fed, MASK, rules_of([NextToken()])).emitted.tolist() == [[1, -1, -1, -1]]


def test_only_verified_requests_get_fewer_masks() -> None:
    """Under ConfAdapt, another number of masks would give another text. Under Exact, a request's own k is still the
    maximum."""
    rules = rules_of([Exact(0.5, 4), Exact(0.5, 2), ConfAdapt(0.5, 4), NextToken()])
    drafts, room, ends = np.full((4, 1), -1), np.full(4, 20), np.full((4, 1), EOS)
    for most, expected in ((3, [3, 1, 3, 0]), (2, [2, 1, 3, 0]), (0, [0, 0, 3, 0])):
        assert propose(drafts, rules, room, MASK, WIDTH - 1, ends, most)[1].tolist() == expected
