"""The bookkeeping of one row, with scripted choices: what is fed, what is emitted, what is drafted."""

from multitoken.decoding.policies import ConfAdapt, Exact, NextToken, StaticK
from multitoken.decoding.row import Request, Row
from multitoken.decoding.step import Feed

EOS = frozenset({9})
SURE = 0.99


def row(policy, remaining: int = 100) -> Row:
    return Row(0, Request([1, 2, 3], policy, remaining, EOS))


def test_exact_drafts_first_and_emits_when_they_are_confirmed() -> None:
    """All drafts are accepted: a step emits the confirmed drafts and the next token, and drafts again."""
    r = row(Exact(0.5, 3))
    assert r.room_for_masks(None) == 2
    first = r.take([4, 5, 6], [SURE] * 3)
    assert (first.token_ids, r.drafts, r.cached) == ((4,), [5, 6], 3)
    assert r.ids[r.cached :] == [4], "the anchor is fed again next to its drafts"
    second = r.take([5, 6, 7, 8, 8], [0.9, 0.8, 0.7, SURE, SURE])
    assert second.token_ids == (5, 6, 7) and second.confidences == (0.9, 0.8, 0.7)
    assert (r.drafts, r.cached, r.ids) == ([8, 8], 6, [1, 2, 3, 4, 5, 6, 7])


def test_exact_rejection_takes_the_models_own_token_and_drops_the_masks() -> None:
    """Masks after a rejected draft were conditioned on a wrong token: keeping them would change the output."""
    r = row(Exact(0.5, 3))
    r.take([4, 5, 6], [SURE] * 3)
    assert Feed(r, 1, 2).block(r.held([5, 7, 8, 8, 8])) == (0, 0)
    chunk = r.take([5, 7], [SURE] * 2)  # 5 holds, 6 should have been 7
    assert chunk.token_ids == (5, 7)
    assert (r.drafts, r.cached, r.ids) == ([], 5, [1, 2, 3, 4, 5, 7])


def test_exact_never_confident_is_next_token_decoding() -> None:
    """Nothing is accepted: one token per step, and no drafts."""
    r = row(Exact(0.5, 3))
    for token in (4, 5, 6):
        assert r.take([token, 8, 8], [0.1] * 3).token_ids == (token,)
        assert r.drafts == []


def test_confadapt_emits_at_once_and_feeds_all_of_it_next() -> None:
    """Emitted tokens are final, and the cache entries of their masks must be overwritten with those of the real
    tokens."""
    r = row(ConfAdapt(0.9, 3))
    assert r.take([4, 5, 6], [SURE, 0.95, 0.5]).token_ids == (4, 5)
    assert (r.cached, r.ids[r.cached :], r.drafts) == (3, [4, 5], [])


def test_eos_inside_a_chunk_cuts_it_and_ends_the_row() -> None:
    """Tokens after EOS are not output, whatever their confidence."""
    r = row(StaticK(4))
    assert r.take([4, 9, 5, 6], [SURE] * 4).token_ids == (4, 9)
    assert r.finish == "eos"


def test_confirmed_eos_ends_the_row_and_no_mask_is_fed_behind_a_drafted_one() -> None:
    """A draft after EOS can never be emitted."""
    r = row(Exact(0.5, 4))
    r.take([4, 5, 9, 6], [SURE] * 4)
    assert r.drafts == [5, 9] and r.room_for_masks(None) == 0
    assert r.take([5, 9, 7], [SURE] * 3).token_ids == (5, 9)
    assert r.finish == "eos"


def test_max_new_tokens_is_honoured_exactly_by_every_policy() -> None:
    """A chunk must not exceed the budget, and the last steps must not feed what can never be emitted."""
    for policy in (NextToken(), StaticK(4), ConfAdapt(0.5, 4), Exact(0.5, 4)):
        for budget in range(1, 12):
            r = row(policy, remaining=budget)
            emitted = 0
            while not r.done:
                masks = r.room_for_masks(None)
                wanted = len(r.drafts) + 1 + masks
                assert len(r.ids) - 3 + len(r.drafts) + masks < budget + 1, "fed beyond the last token"
                emitted += len(r.take([4] * wanted, [SURE] * wanted).token_ids)
            assert emitted == budget, (policy, budget)


def test_masks_stop_at_the_models_last_position() -> None:
    """Learned position tables end there: one position more would crash or read garbage."""
    r = row(ConfAdapt(0.5, 8))
    assert r.room_for_masks(5) == 2 and r.room_for_masks(3) == 0
    r.take([4, 5, 6], [SURE] * 3)
    assert r.room_for_masks(7) == 1
