"""ConfAdapt mode: what masks predict with confidence is final, so a token depends on where steps begin. Our decoder begins
its steps where vLLM does, and must give the same tokens in the same chunks."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from transformers import LogitsProcessorList, RepetitionPenaltyLogitsProcessor

from multitoken.decoding import ConfAdapt, Exact, NextToken, Policy, Sampling, StaticK

from .conftest import MAX_MODEL_LEN, Case, Reference, engine

Generate = Callable[..., list[list[int]]]
THRESHOLD = 0.5


@pytest.fixture(scope="module")
def llm() -> Iterator[Any]:
    with engine(additional_config={"mtp": {"policy": "confadapt", "threshold": THRESHOLD}}) as llm:
        yield llm


def flat(rows: list[list[tuple[int, ...]]]) -> list[list[int]]:
    return [[token for chunk in row for token in chunk] for row in rows]


def test_forty_requests_are_those_of_our_decoder(llm: Any, generate: Generate, reference: Reference, prompts) -> None:
    """Sixteen at once, then again with a warm prefix cache. KV entries of masks must never be used as those of tokens."""
    cases = [Case(prompt, max_tokens=(1, 2, 3, 40, 90)[i % 5]) for i, prompt in enumerate(prompts)]
    expected = flat(reference.chunks(cases, [ConfAdapt(THRESHOLD, 16)] * len(cases)))
    assert generate(llm, cases) == expected
    assert generate(llm, cases) == expected
    assert expected != reference.plain(cases), "the mode is not exact; if this holds, the test says nothing"


def test_it_needs_as_many_passes_as_our_decoder(
    llm: Any, generate: Generate, reference: Reference, prompts, monkeypatch
) -> None:
    """The right tokens, but only one per pass, would be useless."""
    from multitoken.vllm.sampler import Sampler

    passes, original = [], Sampler.__call__
    monkeypatch.setattr(Sampler, "__call__", lambda *args: passes.append(1) or original(*args))
    for prompt in prompts[:4]:
        chunks = reference.chunks([Case(prompt, 90)], [ConfAdapt(THRESHOLD, 16)])[0]
        passes.clear()
        generate(llm, [Case(prompt, 90)])
        assert len(passes) == len(chunks) < sum(map(len, chunks))


def test_stock_scheduler_would_be_wrong(
    llm: Any, generate: Generate, reference: Reference, prompts, monkeypatch
) -> None:
    """The negative control: without our scheduler, KV entries of masks stay and at least a third of the texts are wrong. If the texts were right
    with vLLM's own scheduler, the tests above would prove nothing."""
    from vllm.v1.core.sched.scheduler import Scheduler

    from multitoken.vllm.scheduler import FinalMasksScheduler

    cases = [Case(prompt, 60) for prompt in prompts[:12]]
    expected = flat(reference.chunks(cases, [ConfAdapt(THRESHOLD, 16)] * len(cases)))
    with monkeypatch.context() as patch:
        patch.setattr(FinalMasksScheduler, "_update_request_with_output", Scheduler._update_request_with_output)
        wrong = generate(llm, cases)
    assert llm.reset_prefix_cache()
    assert sum(a != b for a, b in zip(wrong, expected, strict=True)) >= 4
    assert generate(llm, cases) == expected


def test_policies_of_requests_side_by_side(llm: Any, generate: Generate, reference: Reference, prompts) -> None:
    """The scheduler counts verified and final tokens differently. In one batch, each request must be counted in its own way."""
    kinds: list[tuple[dict[str, Any], Policy]] = [
        ({}, ConfAdapt(THRESHOLD, 16)),
        ({"mtp_threshold": 0.9}, ConfAdapt(0.9, 16)),
        ({"mtp_threshold": 0.0, "mtp_k": 4}, ConfAdapt(0.0, 4)),
        ({"mtp_policy": "static", "mtp_k": 3}, StaticK(3)),
        ({"mtp_policy": "exact"}, Exact(0.5, 16)),
        ({"mtp_policy": "next-token"}, NextToken()),
        ({"mtp_threshold": 1}, ConfAdapt(1.0, 16)),
    ]
    cases = [Case(prompt, 50, extra=kinds[i % 7][0]) for i, prompt in enumerate(prompts[:35])]
    expected = reference.chunks(cases, [kinds[i % 7][1] for i in range(35)])
    assert generate(llm, cases) == flat(expected)


def test_sampling_and_penalties(llm: Any, generate: Generate, reference: Reference, prompts) -> None:
    """Tokens of one step are chosen one after the other. Each must see those before it, although they were never drafts."""
    policy = ConfAdapt(THRESHOLD, 16)
    sampled = [Case(p, 40, Sampling(0.9, i, top_k=30)) for i, p in enumerate(prompts[:12])]
    assert generate(llm, sampled) == flat(reference.chunks(sampled, [policy] * 12))
    repeated = [Case(p, 40, eos=False, more={"repetition_penalty": 1.2}) for p in prompts[:8]]
    processor = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(1.2)])
    assert generate(llm, repeated) == flat(reference.chunks(repeated, [policy] * 8, processors=processor))


def test_stop_tokens_end_a_text_inside_an_emission(llm: Any, generate: Generate, reference: Reference, prompts) -> None:
    """What a step emitted after a stop token must not be returned."""
    cases = [Case(prompt, 60) for prompt in prompts[:12]]
    rows = reference.chunks(cases, [ConfAdapt(THRESHOLD, 16)] * 12)
    stopped = 0
    for case, chunks in zip(cases, rows, strict=True):
        tokens = [t for chunk in chunks for t in chunk]
        inside = next((chunk[1] for chunk in chunks if len(chunk) > 2), None)
        if inside is not None:
            stopped += 1
            stop = Case(case.prompt, 60, more={"stop_token_ids": [inside]})
            assert generate(llm, [stop]) == [tokens[: tokens.index(inside) + 1]]
    assert stopped >= 4


def test_up_to_the_last_position(llm: Any, generate: Generate, reference: Reference, prompts) -> None:
    """Near max_model_len, masks are cut for the long request only. The others keep theirs."""
    long = (prompts[1] * 60)[: MAX_MODEL_LEN - 40]
    cases = [Case(long, 40, eos=False), Case(long[:-3], 43, eos=False), *[Case(p, 60) for p in prompts[:8]]]
    expected = reference.chunks(cases, [ConfAdapt(THRESHOLD, 16)] * len(cases))
    assert generate(llm, cases) == flat(expected)
