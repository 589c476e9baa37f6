"""Decoding with a draft head: Exact's output does not change, whatever the head does, and the drafts follow its formula."""

import pytest
import torch
from torch import nn

from multitoken.decoding import ConfAdapt, Decoder, Exact, NextToken, Sampling, StaticK
from multitoken.decoding.blocks import pack_blocks
from multitoken.decoding.draft_head import Drafter, DraftHead, columns
from multitoken.decoding.gumbel import gumbel
from multitoken.decoding.likeliest import top_and_confidence
from multitoken.training.head import Head
from multitoken.training.left_to_right import moved_by, propose
from tests.parity.families import MASK, SUPPORTED

PROMPTS = [[1, 5, 9], [7, 7, 3, 22, 41, 6, 2], [30], [12, 50, 2, 2, 9]]
SAMPLINGS = [None, Sampling(0.8, seed=3, top_p=0.95), Sampling(1.3, seed=9, top_k=7), Sampling(0.6, seed=1, min_p=0.05)]


def head_for(model, seed: int = 0, scale: float = 1.0) -> DraftHead:
    torch.manual_seed(seed)
    head = DraftHead(model.config.hidden_size, 8)
    nn.init.normal_(head.up, std=scale)
    return head.requires_grad_(False)


def answers(decoder: Decoder, policy, sampling, prompts=PROMPTS, **options) -> list[list[int]]:
    out: list[list[int]] = [[] for _ in prompts]
    for chunk in decoder.decode(prompts, policy=policy, max_new_tokens=30, sampling=sampling, **options):
        out[chunk.row] += chunk.token_ids
    return out


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
@pytest.mark.parametrize("threshold", [0.0, 0.4])
def test_exact_writes_the_same_text_whatever_the_head_does(sampling, threshold: float) -> None:
    """A bad head costs steps and a good one saves steps. Neither may change a token, in greedy decoding or with a seed."""
    model = SUPPORTED["llama"]()
    plain = answers(Decoder(model, mask_id=MASK, trained_k=6), NextToken(), sampling)
    for seed in range(3):
        decoder = Decoder(model, mask_id=MASK, trained_k=6, head=head_for(model, seed))
        assert answers(decoder, Exact(threshold), sampling) == plain


def test_rows_of_all_kinds_side_by_side_draft_as_if_alone() -> None:
    """Rows are grouped by how they choose tokens, and padded to the most masks of their group. A neighbour must not change a
    draft: under ConfAdapt, the text would be different."""
    model = SUPPORTED["llama"]()
    decoder = Decoder(model, mask_id=MASK, trained_k=6, head=head_for(model))
    requests = [
        decoder.request(prompt, policy=ConfAdapt(0.02), max_new_tokens=5 + 6 * i, sampling=sampling, row=i)
        for i, (prompt, sampling) in enumerate(zip(PROMPTS * 2, SAMPLINGS * 2, strict=True))
    ]
    alone = []
    for request in requests:
        alone.append([token for chunk in decoder.run([request]) for token in chunk.token_ids])
    together: list[list[int]] = [[] for _ in requests]
    for chunk in decoder.run(requests):
        together[chunk.row] += chunk.token_ids
    assert together == alone


def test_the_scores_of_tokens_from_masks_are_processed() -> None:
    """A caller who asks for scores gets those after top-k for every token, also where the head chose it."""
    model = SUPPORTED["llama"]()
    decoder = Decoder(model, mask_id=MASK, trained_k=6, head=head_for(model))
    request = decoder.request(
        PROMPTS[0], policy=StaticK(4), max_new_tokens=20, sampling=Sampling(0.8, seed=3, top_k=7), keep_scores=True
    )
    for chunk in decoder.run([request]):
        assert chunk.scores is not None and (chunk.scores > -torch.inf).sum(-1).tolist() == [7] * len(chunk.token_ids)


def test_drafts_are_those_that_training_sees() -> None:
    """Decoding chooses among candidates, and training among the whole vocabulary. Both must choose the same tokens, so that
    what is trained is what is decoded."""
    model = SUPPORTED["llama"]()
    head = head_for(model, scale=0.3)
    student = Head(model, MASK)
    batch = pack_blocks(torch.tensor([[1, 5, 9, 4, 7]]), [5], torch.tensor([[1, 4]]), (4, 4), MASK)
    with torch.no_grad():
        hidden = torch.randn(1, batch.slots, model.config.hidden_size)
        moves = columns(head, model)
        trained = propose(head, moves, student, batch, hidden)
        _, sure = student.best_and_sure(hidden, moved_by(head, moves, student, batch, hidden, trained))
        blocks = hidden.view(2, 4, -1)
        logits = student.logits(blocks)[:, 1:]
        drafts = Drafter.of(head, model).draft(
            blocks[:, 1:], logits, top_and_confidence(logits)[1], trained.view(2, 4)[:, 0]
        )
    assert drafts.tokens.tolist() == trained.view(2, 4)[:, 1:].tolist()
    assert torch.allclose(drafts.confidences, sure.view(2, 4)[:, 1:].float(), atol=0.02)


def test_a_sampled_draft_is_drawn_by_the_noise_of_its_place() -> None:
    """Without corrections, the draft must be the same token that the confirming pass would draw from the same scores."""
    model = SUPPORTED["llama"]()
    head = head_for(model, scale=0.0)
    logits = torch.randn(3, 5, 96) * 2
    keys = torch.arange(15).view(3, 5) * 977 + 13
    drafts = Drafter.of(head, model).draft(
        torch.randn(3, 5, model.config.hidden_size),
        logits,
        top_and_confidence(logits)[1],
        torch.tensor([1, 2, 3]),
        warp=lambda s: s / 0.5,
        keys=keys,
    )
    everything = torch.arange(96).expand(15, -1)
    drawn = (logits.view(15, 96).double() / 0.5 + gumbel(keys.flatten(), everything)).argmax(-1)
    among = torch.isin(drawn, logits.view(15, 96).topk(32, -1).indices)
    assert (drafts.tokens.flatten() == drawn)[among].all() and among.float().mean() > 0.9


@pytest.mark.parametrize("sampled", [False, True])
def test_few_blocks_on_a_cpu_draft_as_many_do(sampled: bool, monkeypatch) -> None:
    """Drafts are computed by torch or, for few blocks, by numpy, whose calls are shorter. Both must give the same tokens."""
    model = SUPPORTED["llama"]()
    drafter = Drafter.of(head_for(model), model)
    hidden, logits = torch.randn(3, 5, model.config.hidden_size), torch.randn(3, 5, model.config.vocab_size)
    more = {}
    if sampled:
        warpers = Sampling(0.8, top_p=0.9).processors()
        more = {
            "keys": torch.randint(1 << 40, (3, 5)),
            "warp": lambda scores: warpers(torch.zeros(3, 1).long(), scores),
        }

    def draft():
        with torch.inference_mode():
            return drafter.draft(hidden, logits, logits.softmax(-1).amax(-1), torch.tensor([5, 6, 7]), **more)

    few = draft()
    monkeypatch.setattr(Drafter, "_are_few", lambda *_: False)
    many = draft()
    assert torch.equal(few.tokens, many.tokens)
    assert torch.allclose(few.confidences, many.confidences, atol=1e-5)
