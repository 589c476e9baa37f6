"""Exact mode, in which a checkpoint without further settings is served: it gives what next-token decoding of the same weights
gives."""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    NoBadWordsLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
)

from multitoken.decoding import Sampling

from .conftest import EOS, MAX_MODEL_LEN, Case, Reference, engine

Generate = Callable[..., list[list[int]]]


@pytest.fixture(scope="module")
def llm() -> Iterator[Any]:
    with engine() as llm:
        yield llm


@pytest.fixture(scope="module")
def cases(prompts: list[list[int]]) -> list[Case]:
    return [Case(prompt, max_tokens=(1, 2, 3, 40, 90)[i % 5]) for i, prompt in enumerate(prompts)]


def test_forty_requests_are_those_of_next_token_decoding(
    llm: Any, generate: Generate, reference: Reference, cases: list[Case]
) -> None:
    """Sixteen at once, then again with a warm prefix cache. A wrong acceptance, or KV entries of masks used as real ones, would
    change tokens. A prefix cache that has stored such entries would change them the second time."""
    expected = reference.plain(cases)
    assert generate(llm, cases) == expected
    assert generate(llm, cases) == expected


def test_fewer_passes_than_tokens(llm: Any, generate: Generate, cases: list[Case], monkeypatch) -> None:
    """Equality alone would also hold for a server that never drafts."""
    from multitoken.vllm.sampler import Sampler

    passes, original = [], Sampler.__call__
    monkeypatch.setattr(Sampler, "__call__", lambda *args: passes.append(1) or original(*args))
    tokens = generate(llm, [Case(cases[3].prompt, 90)])[0]
    assert len(tokens) > 20 and len(passes) < 0.8 * len(tokens)


def test_sampled_text_is_that_of_the_seed(llm: Any, generate: Generate, reference: Reference, prompts) -> None:
    """Noise belongs to a position: a seed gives one text, that of our decoder, whatever is drafted and whichever requests share
    the batch."""
    samplings = [
        Sampling(0.8, 1),
        Sampling(1.3, 2, top_k=20),
        Sampling(1.0, 3, top_p=0.8),
        Sampling(0.5, 4, 50, 0.9),
        None,
    ]
    cases = [Case(prompt, 40, samplings[i % 5]) for i, prompt in enumerate(prompts[:20])]
    assert generate(llm, cases) == reference.plain(cases)


def test_sampled_texts_have_the_models_distribution(
    llm: Any, generate: Generate, reference: Reference, prompts
) -> None:
    """Confirming drafts with their own noise must favour none. Five tokens with two choices each make 32 texts, whose
    probabilities the model itself gives. This is a chi-square test with fixed seeds. The probabilities of another
    temperature must fail it."""
    prompt = min(prompts[:12], key=lambda ids: max(probabilities(reference, ids, 5, 2.0).values()))  # least certain
    cases = [
        Case(prompt, 5, Sampling(2.0, seed, top_k=2), eos=False, extra={"mtp_threshold": 0.0, "mtp_k": 4})
        for seed in range(1200)
    ]
    counts = Counter(map(tuple, generate(llm, cases)))
    assert p_value(counts, probabilities(reference, prompt, 5, 2.0)) > 0.01
    assert p_value(counts, probabilities(reference, prompt, 5, 1.6)) < 1e-4


@torch.inference_mode()
def probabilities(
    reference: Reference, prompt: list[int], length: int, temperature: float
) -> dict[tuple[int, ...], float]:
    """The probability of every text that top_k = 2 allows, by passes of the model over each of its prefixes."""
    found: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(length):
        texts = list(found)
        logits = reference.decoder.model(torch.tensor([[*prompt, *text] for text in texts])).logits[:, -1].double()
        logits[:, reference.decoder.mask_id] = -torch.inf
        top = logits.topk(2)
        shares = (top.values / temperature).softmax(-1)
        found = {
            (*text, int(token)): found[text] * float(share)
            for text, tokens, parts in zip(texts, top.indices, shares, strict=True)
            for token, share in zip(tokens, parts, strict=True)
        }
    return found


def p_value(counts: Counter[tuple[int, ...]], expected: dict[tuple[int, ...], float]) -> float:
    """The p-value of Pearson's chi-square test. Texts that are expected fewer than five times are counted together."""
    number = sum(counts.values())
    if counts.keys() - expected.keys():
        return 0.0
    often = [text for text, share in expected.items() if share * number >= 5]
    cells = [(counts[text], expected[text] * number) for text in often]
    rest = number - sum(found for found, _ in cells), number - sum(wanted for _, wanted in cells)
    cells += [rest] if rest[1] >= 1 else []
    statistic = sum((found - wanted) ** 2 / wanted for found, wanted in cells)
    return float(
        torch.special.gammaincc(torch.tensor((len(cells) - 1) / 2).double(), torch.tensor(statistic / 2).double())
    )


def test_requests_without_a_seed_differ(llm: Any, prompts) -> None:
    """A seed made from what all requests share would give all of them the same text."""
    from vllm import SamplingParams

    params = SamplingParams(temperature=2.0, max_tokens=20, ignore_eos=True)
    outputs = llm.generate([{"prompt_token_ids": prompts[0]}] * 8, params, use_tqdm=False)
    assert len({tuple(output.outputs[0].token_ids) for output in outputs}) == 8


def test_penalties_bad_words_and_min_tokens_see_drafts(
    llm: Any, generate: Generate, reference: Reference, prompts
) -> None:
    """They depend on the tokens before a token, which inside a step are drafts. Stock vLLM's count of them would be outdated."""
    repeated = [Case(p, 60, eos=False, more={"repetition_penalty": 1.3}) for p in prompts[:8]]
    processor = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(1.3)])
    assert generate(llm, repeated) == reference.plain(repeated, processors=processor)

    plain = reference.plain([Case(p, 60) for p in prompts[:8]])
    words = [llm.get_tokenizer().decode(tokens[2:3]).strip() for tokens in plain]
    params = [Case(p, 60, more={"bad_words": [w]}) for p, w in zip(prompts[:8], words, strict=True) if w]
    for case, tokens in zip(params, generate(llm, params), strict=True):
        banned = case.params()
        banned.update_from_tokenizer(llm.get_tokenizer())
        processor = LogitsProcessorList([NoBadWordsLogitsProcessor(banned.bad_words_token_ids)])
        assert [tokens] == reference.plain([case], processors=processor)

    for prompt in prompts[:4]:
        case = Case(prompt, 120, more={"min_tokens": 100})
        processor = LogitsProcessorList([MinNewTokensLengthLogitsProcessor(len(prompt), 100, [EOS])])
        assert generate(llm, [case]) == reference.plain([case], processors=processor)


def test_stop_tokens_end_a_text_inside_an_emission(llm: Any, generate: Generate, reference: Reference, prompts) -> None:
    """What a step confirmed after a stop token must not be returned."""
    plain = reference.plain([Case(p, 60) for p in prompts[:12]])
    for prompt, tokens in zip(prompts[:12], plain, strict=True):
        for place in (2, 5, 9):
            if place < len(tokens):
                end = tokens.index(tokens[place])
                stopped = generate(llm, [Case(prompt, 60, more={"stop_token_ids": [tokens[place]]})])
                assert stopped == [tokens[: end + 1]]


def test_up_to_the_last_position(llm: Any, generate: Generate, reference: Reference, prompts) -> None:
    """Near max_model_len, vLLM would feed token 0 in place of everyone's masks. Nothing may be fed beyond max_model_len."""
    long = (prompts[1] * 60)[: MAX_MODEL_LEN - 40]
    cases = [
        Case(long, 40, eos=False),
        *[Case(long[:-n], 40 + n, eos=False) for n in (1, 3, 17)],
        *[Case(p, 60) for p in prompts[:8]],
    ]
    assert generate(llm, cases) == reference.plain(cases)


def test_policy_threshold_and_k_of_a_request_change_no_token(
    llm: Any, generate: Generate, reference: Reference, prompts
) -> None:
    """They change how much is drafted, and only for their own request."""
    extras = [
        {"mtp_threshold": 0.0},
        {"mtp_threshold": 1.0},
        {"mtp_policy": "next-token"},
        {"mtp_policy": "exact", "mtp_k": 2},
        {},
        {"mtp_k": 5, "mtp_threshold": 0},
    ]
    cases = [Case(p, 50, extra=extras[i % 6]) for i, p in enumerate(prompts[:18])]
    assert generate(llm, cases) == reference.plain(cases)


def test_logprobs_are_the_models_own(llm: Any, reference: Reference, prompts) -> None:
    """A token that was confirmed as a draft must have the log-probability of its own position, not of the one before."""
    from vllm import SamplingParams

    prompt = prompts[2]
    output = llm.generate(
        [{"prompt_token_ids": prompt}], SamplingParams(temperature=0, max_tokens=40, logprobs=3), use_tqdm=False
    )[0].outputs[0]
    tokens = list(output.token_ids)
    with torch.inference_mode():
        logits = reference.decoder.model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1].float()
        logits[:, 2040] = -torch.inf
    expected = logits.log_softmax(-1)
    for place, (token, found) in enumerate(zip(tokens, output.logprobs, strict=True)):
        assert found[token].rank == 1 and abs(found[token].logprob - float(expected[place, token])) < 1e-4
        assert len(found) == 3


BAD = [
    ({"mtp_threshold": 1.7}, "threshold is 1.7; expected a number from 0 to 1"),
    ({"mtp_threshold": "high"}, "threshold is 'high'"),
    ({"mtp_policy": "eager"}, "policy is 'eager'; expected one of"),
    ({"mtp_policy": 3}, "policy is 3; expected its name"),
    ({"mtp_k": 17}, "k is 17, but this server is set up for k up to 16"),
    ({"mtp_k": 0}, "k is 0; expected a whole number"),
    ({"mtp_policy": "confadapt"}, "whose tokens are not confirmed"),
    ({"mtp_policy": "next-token", "mtp_threshold": 0.4}, "next-token policy has no threshold"),
    ({"mtp_treshold": 0.4}, "did you mean 'mtp_threshold'"),
]


@pytest.mark.parametrize(("extra", "message"), BAD, ids=lambda value: str(value)[:40])
def test_bad_values_are_refused_for_that_request_alone(llm: Any, generate: Generate, prompts, extra, message) -> None:
    """The error is a ValueError of vLLM's own kind, which its HTTP server answers with 400. Later requests still work."""
    from vllm.exceptions import VLLMValidationError

    with pytest.raises(VLLMValidationError, match=message):
        generate(llm, [Case(prompts[0], 5, extra=extra)])
    assert len(generate(llm, [Case(prompts[0], 5, eos=False)])[0]) == 5


def test_a_mask_in_a_prompt_is_refused(llm: Any, generate: Generate, prompts) -> None:
    """The mask would be decoded as if the server had fed it."""
    from vllm.exceptions import VLLMValidationError

    with pytest.raises(VLLMValidationError, match=r"contains the mask token \(id 2040\)"):
        generate(llm, [Case([*prompts[0], 2040], 5)])
