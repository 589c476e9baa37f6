"""Joined rows: their layout, and that blocks after earlier samples learn what the original would write there."""

import math

import pytest

from multitoken.training.encoding import make_sample
from multitoken.training.joining import is_joined, join, longest_join
from multitoken.training.stream import BlockStream, StreamOptions, collate
from tests.unit.training.project import make_project, run

SAMPLES = [make_sample(range(10, 10 + p), range(50, 50 + r), True, 64) for p, r in ((3, 5), (1, 7), (4, 4), (2, 6))]


def stream(share: float, room: int = 100) -> BlockStream:
    options = StreamOptions(seed=3, rows_per_step=4, blocks=3, k_max=8, join_share=share, join_room=room)
    return BlockStream(SAMPLES, options, steps=20)


def test_samples_of_a_joined_step_stand_in_one_line() -> None:
    """The samples form one segment, so that each sees the earlier ones and positions continue. Anchors, ends and places
    are shifted with their sample."""
    plain, joined = stream(0.0), stream(1.0)
    rows = [plain[i] for i in range(4)]
    batch = collate([joined[i] for i in range(4)])
    assert batch["tokens"].tolist() == [[token for row in rows for token in row["ids"]]]
    assert batch["lengths"].tolist() == [32] and not batch["segments"].any()
    assert batch["anchors"].tolist() == [[8 * i + row["anchors"][j] for i, row in enumerate(rows) for j in (0, 2)]]
    assert batch["ends"].tolist() == [[8 * i + row["ends"][j] for i, row in enumerate(rows) for j in (0, 2)]]
    assert batch["ks"].tolist() == [rows[0]["ks"][0], rows[0]["ks"][2]] * 4
    assert batch["trainable"][0].nonzero().flatten().tolist() == [
        8 * i + p for i, row in enumerate(rows) for p in row["places"]
    ]
    # The first text still has its own prefix. The others were written without the text that is now in front of them.
    assert batch["sampled"].tolist() == [[False, False, *[True] * 6]]


def test_rows_are_joined_as_far_as_there_is_room() -> None:
    """The number of positions of a model is limited: rows are joined in pairs where four do not fit, and not at all
    where two do not fit."""
    for room, rows in ((32, 1), (31, 2), (16, 2), (15, 4)):
        s = stream(1.0, room)
        assert len(collate([s[i] for i in range(4)])["tokens"]) == rows
    six = [{"ids": [1], "places": [0], "anchors": [0], "ends": [1], "ks": [2], "sampled": [0]} for _ in range(6)]
    assert [len(row["ids"]) for row in join(six, 5)] == [3, 3], (
        "groups are equally large: rows have equally many blocks"
    )
    assert longest_join(256, 16) == 240 and longest_join(None, 16) == longest_join(10**6, 16)


def test_joined_steps_are_spread_evenly() -> None:
    assert [step for step in range(16) if is_joined(step, 0.25)] == [3, 7, 11, 15]
    assert sum(is_joined(step, 0.125) for step in range(800)) == 100
    assert not any(is_joined(step, 0.0) for step in range(100))


@pytest.mark.parametrize("options", [{"method": "full"}, {"method": "gated"}, {"method": "full", "labels": "online"}])
def test_every_method_trains_on_joined_rows(tmp_path, options: dict) -> None:
    """Each method computes the teacher's distribution in another way: from the gate's own prefix, or by a pass of the
    copy."""
    given = {"labels": "data", "steps": 3, "loss_weights": "reach", "next_token_weight": None}
    done = run(make_project(tmp_path), "adapted", **given | options, join_share=1.0)
    losses = [entry["loss"] for entry in done.log if "loss" in entry]
    assert done.steps == 3 and losses and all(math.isfinite(loss) for loss in losses)
