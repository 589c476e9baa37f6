"""Sampling through `generate`: one text per seed for next-token and Exact, in any batch, and with the right distribution."""

import pytest
import torch
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

from tests.parity.families import EOS, MASK, SUPPORTED, VOCABULARY
from tests.parity.generating import EXACT, HOLDING, PROMPTS, model_of, new_tokens, ours, padded, sizes

HOT = {"do_sample": True, "temperature": 4.0, "top_k": 0}
NEXT = {"policy": "next-token"}


@pytest.mark.parametrize("family", [HOLDING, *SUPPORTED])
@pytest.mark.parametrize("options", [{}, {"top_p": 0.9, "repetition_penalty": 1.3, "min_p": 0.001}], ids=str)
def test_a_seed_gives_one_text_under_next_token_and_exact(family: str, options: dict) -> None:
    """A draft and its confirmation must use the same noise. Otherwise Exact samples another text than plain decoding."""
    model = model_of(family)
    texts = [ours(model, PROMPTS, mtp={**how, "seed": 7}, **HOT, **options) for how in (NEXT, EXACT)]
    assert torch.equal(*texts)
    assert not torch.equal(texts[0], ours(model, PROMPTS, mtp={**NEXT, "seed": 8}, **HOT, **options))


def test_a_seed_gives_a_row_one_text_whatever_stands_beside_it() -> None:
    """Noise depends on seed, row and position, not on padding, neighbours or the order in which rows end."""
    model = model_of(HOLDING)
    mtp, chunks = {**EXACT, "seed": 3}, []
    together = new_tokens(ours(model, PROMPTS, mtp=mtp, mtp_chunks=chunks, **HOT), PROMPTS)
    assert max(sizes(chunks)) > 1
    assert new_tokens(ours(model, PROMPTS[:1], mtp=mtp, **HOT), PROMPTS[:1]) == together[:1]
    others = [PROMPTS[2], PROMPTS[1], PROMPTS[0]]  # rows 0 and 2 are swapped, row 1 stays
    assert new_tokens(ours(model, others, mtp=mtp, **HOT), others)[1] == together[1]
    right = new_tokens(ours(model, PROMPTS, side="right", mtp=mtp, **HOT), PROMPTS)
    assert right == together


def test_torch_manual_seed_decides_where_no_seed_is_given() -> None:
    """As in transformers: the same call after the same `manual_seed` writes the same text, and the next call another one."""
    model = model_of("llama")
    torch.manual_seed(11)
    first, second = (ours(model, PROMPTS, **HOT) for _ in range(2))
    torch.manual_seed(11)
    assert torch.equal(ours(model, PROMPTS, **HOT), first) and not torch.equal(first, second)


def test_return_sequences_of_a_prompt_stand_together_and_differ() -> None:
    """If rows of one prompt shared their noise, they would be copies."""
    model = model_of("llama")
    out = ours(model, PROMPTS, mtp={**EXACT, "seed": 1}, num_return_sequences=3, encoder_repetition_penalty=1.2, **HOT)
    assert out.shape[0] == 9
    prompts = [prompt for prompt in PROMPTS for _ in range(3)]
    assert torch.equal(out[:, :17], padded(prompts)["input_ids"])
    assert len({tuple(row) for row in out[:, 17:].tolist()}) == 9
    assert torch.equal(out, ours(model, prompts, mtp={**NEXT, "seed": 1}, encoder_repetition_penalty=1.2, **HOT))


def test_a_checkpoint_that_samples_is_sampled_and_may_be_told_not_to() -> None:
    """do_sample in generation_config.json is part of what `generate` means for that checkpoint."""
    model = model_of("llama")
    greedy = ours(model, PROMPTS)
    model.generation_config.do_sample, model.generation_config.temperature = True, 4.0
    sampled = ours(model, PROMPTS, mtp={**EXACT, "seed": 1})
    assert torch.equal(sampled, ours(model, PROMPTS, mtp={**NEXT, "seed": 1}))
    assert not torch.equal(sampled, greedy)
    assert torch.equal(ours(model, PROMPTS, do_sample=False), greedy)


def exact_probabilities(model, warpers: LogitsProcessorList) -> torch.Tensor:
    """The probability of each pair [first, second] of next tokens, by plain forward passes. Nothing follows EOS: its second
    token counts as 0."""

    def after(ids: list[list[int]]) -> torch.Tensor:
        with torch.no_grad():
            logits = model(torch.tensor(ids)).logits[:, -1]
        logits[:, MASK] = -torch.inf
        return warpers(torch.tensor(ids), logits).softmax(-1)

    first = after([PROMPTS[0]])[0]
    second = after([[*PROMPTS[0], token] for token in range(VOCABULARY)])
    second[EOS] = torch.eye(VOCABULARY)[0]
    return first[:, None] * second


@pytest.mark.parametrize(("temperature", "top_p"), [(1.5, 0.9), (2.0, 0.7)])
def test_the_first_two_tokens_have_their_exact_probabilities(temperature: float, top_p: float) -> None:
    """A draft that is confirmed with other noise than it was made with would be accepted too often or too rarely. This is a
    chi-square test of 1,500 rows against exact probabilities. Pairs that are expected fewer than 5 times are counted
    together. The bound is 5 standard deviations above the mean."""
    model, rows, chunks = model_of(HOLDING), 1500, []
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature), TopPLogitsWarper(top_p)])
    expected = exact_probabilities(model, warpers).flatten() * rows
    out = ours(
        model, PROMPTS[:1], mtp={**EXACT, "seed": 5}, do_sample=True, temperature=temperature, top_p=top_p, top_k=0,
        num_return_sequences=rows, max_new_tokens=3, mtp_chunks=chunks,
    )  # fmt: skip
    assert max(sizes(chunks)) > 1, "some drafts should hold"
    counts = torch.bincount(out[:, 5] * VOCABULARY + out[:, 6], minlength=VOCABULARY**2).double()
    assert not counts[expected == 0].any()
    often = expected >= 5
    observed = torch.cat([counts[often], counts[~often].sum()[None]])
    wanted = torch.cat([expected[often], expected[~often].sum()[None]])
    freedom = len(wanted) - 1
    assert freedom > 10
    assert float(((observed - wanted) ** 2 / wanted).sum()) < freedom + 5 * (2 * freedom) ** 0.5


@pytest.mark.parametrize(
    "option",
    [{"top_k": 3}, {"top_p": 0.5}, {"min_p": 0.3}, {"typical_p": 0.3}, {"epsilon_cutoff": 0.011}, {"eta_cutoff": 0.6}, {"top_h": 0.4}],
    ids=str,
)  # fmt: skip
def test_every_warper_leaves_out_what_transformers_leaves_out(option: dict) -> None:
    """Without a warper the text would still be plausible. Scores must be those of transformers, and every token one that the
    warper leaves."""
    model = model_of("llama")
    asked = {"output_scores": True, "return_dict_in_generate": True, "do_sample": True, "temperature": 6.0, "top_k": 0}
    out = ours(model, PROMPTS[:1], mtp={**EXACT, "seed": 2}, **{**asked, **option})
    for i, (token, scores) in enumerate(zip(out.sequences[0, 5:], out.scores, strict=True)):
        wanted = model.generate(
            out.sequences[:, : 5 + i], max_new_tokens=1, suppress_tokens=[MASK], **{**asked, **option}
        ).scores[0]
        torch.testing.assert_close(scores, wanted, rtol=0, atol=1e-9)
        assert scores[0, token] > -torch.inf
    left = [int((scores > -torch.inf).sum()) for scores in out.scores]
    assert max(left) < VOCABULARY - 1 and (len(set(left)) > 1 or "top_k" in option)
