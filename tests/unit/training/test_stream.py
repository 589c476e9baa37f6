"""The order of training depends only on the seed and the place in the stream, however the stream is divided."""

import torch

from multitoken.training.encoding import Sample, make_sample
from multitoken.training.stream import BlockStream, StreamOptions, collate

SAMPLES = [make_sample(range(10, 10 + p), range(50, 50 + r), True, 64) for p, r in ((3, 5), (1, 2), (4, 9), (2, 30))]


def stream(**changes) -> BlockStream:
    options = {"seed": 3, "rows_per_step": 4, "blocks": 3, "k_max": 8, **changes}
    return BlockStream(SAMPLES, StreamOptions(**options), steps=20)


def test_the_same_place_gives_the_same_row_whoever_asks_in_whatever_order() -> None:
    """A resumed run, several processes and gradient accumulation each read the stream in another order."""
    forward, backward = stream(), stream()
    rows = [forward[i] for i in range(len(forward))]
    assert [backward[i] for i in reversed(range(len(backward)))][::-1] == rows
    assert [stream(seed=4)[i] for i in range(8)] != rows[:8]


def test_rows_of_a_step_share_their_ks_and_steps_differ() -> None:
    """Rows of one step are packed into one tensor, so they need the same ks. Ks that never change are the paper's
    failed ablation."""
    s = stream()
    per_step = [{tuple(s[i]["ks"]) for i in range(step * 4, step * 4 + 4)} for step in range(20)]
    assert all(len(ks) == 1 for ks in per_step)
    assert len(set.union(*per_step)) > 15
    drawn = {k for ks in set.union(*per_step) for k in ks}
    assert min(drawn) == 2 and max(drawn) == 8
    assert set(stream(fixed_k=True)[0]["ks"]) == {8}


def test_blocks_grow_over_the_first_steps() -> None:
    """Short blocks come first: what a position learns before the positions in front of it is of no use. The length
    depends on the step's number, so a resumed run continues where it was."""
    grown = stream(fixed_k=True, growth=0.5)
    assert [grown[4 * step]["ks"][0] for step in range(12)] == [4, 4, 4, 5, 5, 6, 6, 6, 7, 7, 8, 8]
    drawn = stream(growth=0.5)
    assert all(2 <= k <= 4 for step in range(3) for k in drawn[4 * step]["ks"])
    assert stream(k_max=3, fixed_k=True, growth=0.5)[0]["ks"] == [3, 3, 3]


def test_blocks_grow_by_the_clock_where_the_clock_ends_the_run() -> None:
    """A run of minutes does not know its number of steps. Counted in steps, the growth of blocks would never end or
    never begin."""
    done = 0.0
    options = StreamOptions(seed=3, rows_per_step=4, blocks=3, k_max=8, fixed_k=True, growth=0.4)
    s = BlockStream(SAMPLES, options, steps=10**8, progress=lambda: done)
    seen = []
    for done in (0.0, 0.11, 0.21, 0.31, 0.4, 1.0):  # noqa: B007
        seen.append(s[0]["ks"][0])
    assert seen == [4, 5, 6, 7, 8, 8]


def test_anchors_stand_where_a_response_token_follows() -> None:
    """An anchor in the prompt would train on tokens that are never generated. An anchor at the end has nothing to
    predict."""
    for train_on, first in (("response", True), ("all", False)):
        s = stream(train_on=train_on)
        for i in range(len(s)):
            row = s[i]
            prompt = next(len(x.prompt_ids) for x in SAMPLES if [*x.prompt_ids, *x.response_ids] == row["ids"])
            low = prompt - 1 if first else 0
            assert all(low <= a <= len(row["ids"]) - 2 for a in row["anchors"])


def test_anchors_stand_in_every_turn_of_the_assistant_and_know_its_end() -> None:
    """The text is u u [A A $] u u u [B $]. An anchor whose next token is the user's would teach the model to write the
    user's turns."""
    chat = Sample(tuple(range(20, 30)), ((2, 5), (8, 10)), True)
    row = BlockStream([chat], StreamOptions(seed=0, rows_per_step=1, blocks=5, k_max=4), steps=1)[0]
    assert row["places"] == [1, 2, 3, 7, 8]
    assert sorted(zip(row["anchors"], row["ends"], strict=True)) == [(1, 5), (2, 5), (3, 5), (7, 10), (8, 10)]
    assert collate([row])["trainable"].nonzero()[:, 1].tolist() == [1, 2, 3, 7, 8]
    every = BlockStream([chat], StreamOptions(seed=0, rows_per_step=1, blocks=5, k_max=4, train_on="all"), steps=1)[0]
    assert every["places"] == list(range(9)) and set(every["ends"]) == {10}


def test_samples_share_a_row_each_in_its_own_segment() -> None:
    """The lengths are 8, 3, 13 and 32: the last fills a row, the others share one. Turn ends and places are shifted
    with their sample."""
    packed = stream(pack=True, rows_per_step=2)
    assert len(packed.rows) == 2
    items = [packed[i] for i in range(2)]
    assert sorted(item["lengths"] for item in items) == [[13, 8, 3], [32]]
    shared = next(item for item in items if len(item["lengths"]) == 3)
    assert shared["ids"] == [*SAMPLES[2].ids, *SAMPLES[0].ids, *SAMPLES[1].ids]
    assert shared["places"] == [*range(3, 12), *range(15, 20), *range(21, 23)]
    batch = collate(items)
    assert torch.bincount(batch["segments"].flatten() + 1).tolist() == [8, 45, 8, 3]
    assert {13, 21, 24} >= set(shared["ends"])
    epoch = [packed[i]["ids"] for i in range(2, 4)]
    assert sorted(epoch) == sorted(item["ids"] for item in items), "every epoch shows every row once"


def test_every_epoch_shows_every_sample_once() -> None:
    """Sorting by length within windows must not lose or repeat samples."""
    s = stream(rows_per_step=2)
    for epoch in range(3):
        seen = sorted(tuple(s[i]["ids"]) for i in range(epoch * 4, epoch * 4 + 4))
        assert seen == sorted((*x.prompt_ids, *x.response_ids) for x in SAMPLES)


def test_collate_pads_right_and_marks_what_may_be_trained() -> None:
    """`trainable` marks the places that predict the response: from the last prompt token to the last token but one."""
    s = stream()
    rows = [s[i] for i in range(4)]
    batch = collate(rows)
    for b, row in enumerate(rows):
        n = len(row["ids"])
        assert batch["tokens"][b, :n].tolist() == row["ids"] and not batch["tokens"][b, n:].any()
        assert batch["trainable"][b].nonzero().flatten().tolist() == list(range(row["ids"].index(50) - 1, n - 1))
    assert batch["ks"].tolist() == rows[0]["ks"] and batch["lengths"].dtype == torch.long
