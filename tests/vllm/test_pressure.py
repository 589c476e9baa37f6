"""Too little room: exact's output must not depend on it."""

from collections.abc import Callable
from typing import Any

from .conftest import Case, Reference, engine

Generate = Callable[..., list[list[int]]]


def test_preemption(generate: Generate, reference: Reference, prompts) -> None:
    """A preempted request computes its KV entries anew from its tokens; drafts that were on their way are gone."""
    from vllm.v1.core.sched.scheduler import Scheduler

    cases = [Case(prompt, 120, eos=False) for prompt in prompts[:16]]
    preempted: list[Any] = []
    original = Scheduler._preempt_request

    def noted(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        preempted.append(request)
        return original(self, request, *args, **kwargs)

    Scheduler._preempt_request = noted  # type: ignore[method-assign]
    try:
        with engine(num_gpu_blocks_override=24) as llm:
            assert generate(llm, cases) == reference.plain(cases)
    finally:
        Scheduler._preempt_request = original  # type: ignore[method-assign]
    assert len(preempted) >= 4


def test_chunked_prefill_and_a_budget_that_cuts_masks(generate: Generate, reference: Reference, prompts) -> None:
    """Prompts come in pieces beside decoding requests, and a step has no room for everyone's masks."""
    cases = [Case((p * 12)[:170] if i % 3 == 0 else p, 60) for i, p in enumerate(prompts[:16])]
    with engine(max_num_batched_tokens=64, enable_chunked_prefill=True) as llm:
        assert generate(llm, cases) == reference.plain(cases)
