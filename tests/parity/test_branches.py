"""Branches change the number of steps of an answer, but no token. A branch predicts what a block in its place would predict."""

import pytest
import torch

from multitoken.decoding import Decoder, Exact, NextToken, Sampling
from multitoken.decoding.branches import Branch, likely_fronts
from multitoken.decoding.failures import DecodingError
from multitoken.decoding.pace import Level, Pace
from multitoken.decoding.row import Row
from multitoken.decoding.step import Feed, forward_rows
from tests.parity.families import MASK, SUPPORTED
from tests.parity.test_draft_head import SAMPLINGS, answers, head_for


def recorded_branches(patch: pytest.MonkeyPatch) -> list[tuple[Branch, ...]]:
    """A list to which every row's branches are added in every step."""
    fed, chosen = [], Row.branches
    patch.setattr(Row, "branches", lambda *given: fed.append(chosen(*given)) or fed[-1])
    return fed


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
@pytest.mark.parametrize("threshold", [0.0, 0.02])
@pytest.mark.parametrize("with_head", [False, True])
def test_no_token_changes(
    sampling: Sampling | None, threshold: float, with_head: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sampled rows have branches only with a draft head: without one, none may be fed."""
    model = SUPPORTED["llama"]()
    plain = answers(Decoder(model, mask_id=MASK, trained_k=6), NextToken(), sampling)
    decoder = Decoder(model, mask_id=MASK, trained_k=6, head=head_for(model) if with_head else None)
    fed = recorded_branches(monkeypatch)
    for branches in (1, 3):
        assert answers(decoder, Exact(threshold, branches=branches), sampling) == plain
    assert any(fed) == (with_head or sampling is None)


@pytest.mark.parametrize("family", SUPPORTED)
def test_every_kind_of_attention_keeps_its_text(family: str) -> None:
    model = SUPPORTED[family]()
    plain = answers(Decoder(model, mask_id=MASK, trained_k=6), NextToken(), None)
    assert answers(Decoder(model, mask_id=MASK, trained_k=6), Exact(0.0, branches=4), None) == plain


@pytest.mark.parametrize("family", SUPPORTED)
def test_a_branch_says_what_a_block_there_says(family: str) -> None:
    """The logits at a branch's masks must equal those of a row that ends after the branch's front. Rows of other lengths are
    in the same batch."""
    model = SUPPORTED[family]()
    decoder = Decoder(model, mask_id=MASK, trained_k=6)

    def logits(rows: list[tuple[list[int], list[int], int, tuple[Branch, ...]]]) -> torch.Tensor:
        engine = decoder.engine()
        made = []
        for number, (prompt, drafts, _, _) in enumerate(rows):
            row = Row(number, decoder.request(prompt, policy=Exact(0.0), max_new_tokens=30))
            row.drafts, row.started = drafts, True
            made.append(row)
        feeds = [
            Feed(row, row.pending(), masks, branches) for row, (_, _, masks, branches) in zip(made, rows, strict=True)
        ]
        engine._batch.rule.grow(64)
        engine._batch.cache.grow(len(rows), 64)
        with torch.inference_mode():
            return forward_rows(engine._batch, feeds)

    drafts = [5, 6, 7, 8]
    both = logits(
        [
            ([1, 5, 9], drafts, 5, (Branch(0, 3), Branch(2, 2))),
            ([7, 7, 3, 22, 41], [11, 12], 3, (Branch(1, 4),)),
            ([30], [], 5, ()),
        ]
    )
    for row, behind, prompt, masks in (
        (0, 5, [1, 5, 9], 3),
        (0, 2, [1, 5, 9, 5, 6], 2),
        (1, 4, [7, 7, 3, 22, 41, 11], 4),
        (0, 10, [1, 5, 9, *drafts], 5),
        (2, 5, [30], 5),
    ):
        alone = logits([(prompt, [], masks, ())])[0, -masks:]
        end = both.shape[1] - behind + masks
        assert torch.allclose(both[row, end - masks : end], alone, atol=2e-4), (row, behind)


def test_a_refusal_leaves_drafts() -> None:
    """A row whose first draft is refused continues with the branch's tokens as drafts. Without a branch, it has no drafts."""
    request = Decoder(SUPPORTED["llama"](), mask_id=MASK, trained_k=6).request(
        [1, 2], policy=Exact(0.5), max_new_tokens=20
    )
    row = Row(0, request)
    row.drafts, row.sure = [9, 9], [0.6, 0.9]
    row.take([3, 4, 5], [0.9, 0.8, 0.4])
    assert (row.ids, row.drafts, row.sure) == ([1, 2, 3], [4], [0.8])
    row.drafts = [9]
    row.take([6], [0.9])
    assert (row.ids, row.drafts) == ([1, 2, 3, 6], [])


def test_fronts_are_those_where_a_refusal_is_likely() -> None:
    assert likely_fronts([0.9, 0.5, 0.99, 0.6], 2) == [1, 3]
    assert likely_fronts([0.999, 0.5], 4) == [1]
    assert likely_fronts([], 4) == []


@pytest.mark.parametrize("branches", [-1, True, 1.5])
def test_branches_that_are_no_number_are_refused(branches) -> None:
    with pytest.raises(DecodingError, match="branches is"):
        Exact(0.5, branches=branches)


def test_memory_is_asked_for_with_the_branches_slots() -> None:
    """A cache with room for the text but not for the branches' masks is too small. The number of slots that is asked for must
    include them, so that a lack of memory is reported in advance and not found in the middle of a step."""
    model = SUPPORTED["llama"]()
    decoder = Decoder(model, mask_id=MASK, trained_k=6)
    request = decoder.request([1, 2], policy=Exact(0.0, branches=9), max_new_tokens=20)
    assert Row(0, request).most_slots(0) == 22 + 5 * 3  # at most one after each of five drafts
    assert Row(0, decoder.request([1, 2], policy=NextToken(), max_new_tokens=20)).most_slots(8) == 22


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_no_token_changes_where_the_pace_feeds_them(sampling: Sampling | None) -> None:
    """If branches pay off on a machine, the pace feeds them although the request does not ask for them. No token may change."""
    model = SUPPORTED["llama"]()
    plain = answers(Decoder(model, mask_id=MASK, trained_k=6), NextToken(), sampling)
    decoder = Decoder(model, mask_id=MASK, trained_k=6, head=head_for(model))
    decoder._pace = _Branching(5, 3)
    with pytest.MonkeyPatch.context() as patch:
        fed = recorded_branches(patch)
        assert answers(decoder, Exact(0.0), sampling, adaptive=True) == plain
        assert max(map(len, fed)) == 3
        fed.clear()
        assert answers(decoder, Exact(0.0, branches=0), sampling, adaptive=True) == plain
        assert not any(fed)


class _Branching(Pace):
    """As on a machine whose passes take the same time for any number of tokens."""

    def level(self, rows: int) -> Level:
        return Level(5, 3)


def test_a_policy_that_names_no_number_leaves_it_to_the_pace() -> None:
    decoder = Decoder(SUPPORTED["llama"](), mask_id=MASK, trained_k=6)

    def made(policy: Exact, **options) -> Row:
        row = Row(0, decoder.request([1, 2], policy=policy, max_new_tokens=20, **options))
        row.drafts, row.sure = [5, 6, 7], [0.5, 0.5, 0.5]
        return row

    left, asked, none = (made(Exact(0.5, branches=n)) for n in (None, 1, 0))
    assert [len(row.branches(None, 2)) for row in (left, asked, none)] == [2, 1, 0]
    assert [row.most_slots(2) for row in (left, asked, none)] == [22 + 2 * 3, 22 + 3, 22]
    assert made(Exact(0.5), adaptive=False).branches(None, 2) == ()
