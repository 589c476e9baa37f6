"""Too little room: exact's output must not depend on it, and confadapt's must be that of the steps that were actually run."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
import torch

from multitoken.decoding import ConfAdapt
from multitoken.decoding.likeliest import top_and_confidence

from .conftest import Case, Reference, engine

Generate = Callable[..., list[list[int]]]


@pytest.fixture
def preempted(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The requests that vLLM preempts."""
    from vllm.v1.core.sched.scheduler import Scheduler

    noted: list[Any] = []
    original = Scheduler._preempt_request

    def note(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        noted.append(request)
        return original(self, request, *args, **kwargs)

    monkeypatch.setattr(Scheduler, "_preempt_request", note)
    return noted


def test_preemption(generate: Generate, reference: Reference, prompts, preempted: list[Any]) -> None:
    """A preempted request computes its KV entries again from its tokens, and its pending drafts are lost."""
    cases = [Case(prompt, 120, eos=False) for prompt in prompts[:16]]
    with engine(num_gpu_blocks_override=24) as llm:
        assert generate(llm, cases) == reference.plain(cases)
    assert len(preempted) >= 4


def test_confadapt_under_preemption(
    generate: Generate, reference: Reference, prompts, preempted: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here the scheduler chooses where steps begin, and tokens depend on it. They must be those that the model gives for the
    steps that were run and the masks that were fed. No KV entry of these masks may have stayed."""
    from multitoken.vllm.private import step_of
    from multitoken.vllm.sampler import Sampler

    fed: dict[tuple[int, ...], list[int]] = defaultdict(list)  # the masks of each step, by prompt
    original = Sampler.__call__

    def note(self: Any, logits: Any, metadata: Any) -> Any:
        step = step_of(self._runner)
        masks = metadata.num_draft_tokens if metadata is not None else [0] * len(step.names)
        for name, n, discarded in zip(step.names, masks, step.discarded, strict=True):
            if not discarded:
                fed[tuple(step.states[name].prompt_token_ids)].append(n)
        return original(self, logits, metadata)

    monkeypatch.setattr(Sampler, "__call__", note)
    cases = [Case(prompt, 90, eos=False) for prompt in prompts[:16]]
    with engine(
        num_gpu_blocks_override=24, additional_config={"mtp": {"policy": "confadapt", "threshold": 0.5}}
    ) as llm:
        texts = generate(llm, cases)
    assert texts == [replay(reference, case, ConfAdapt(0.5), fed[tuple(case.prompt)]) for case in cases]
    assert len(preempted) >= 4
    assert any(0 in masks[1:-1] for masks in fed.values()), "no request had to begin anew in the middle"


@torch.inference_mode()
def replay(reference: Reference, case: Case, policy: ConfAdapt, masks: list[int]) -> list[int]:
    """The slow, plain way: without a cache, with one pass over everything for each step."""
    decoder, ids, end = reference.decoder, list(case.prompt), len(case.prompt) + case.max_tokens
    for n in masks:
        logits = decoder.model(torch.tensor([ids + [decoder.mask_id] * n])).logits[0, -(n + 1) :].float()
        logits[:, decoder.mask_id] = -torch.inf
        tokens, confidences = top_and_confidence(logits)
        ids = (ids + tokens[: policy.kept(confidences.tolist())].tolist())[:end]
    return ids[len(case.prompt) :]


def test_chunked_prefill_and_a_budget_that_cuts_masks(generate: Generate, reference: Reference, prompts) -> None:
    """Prompts come in pieces in the same steps as decoding requests, and a step has no room for everyone's masks."""
    cases = [Case((p * 12)[:170] if i % 3 == 0 else p, 60) for i, p in enumerate(prompts[:16])]
    with engine(max_num_batched_tokens=64, enable_chunked_prefill=True) as llm:
        assert generate(llm, cases) == reference.plain(cases)
