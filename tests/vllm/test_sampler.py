"""The sampler alone, on logits that no model made. No engine is built here."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks import vllm_local  # noqa: F401  (before vLLM: it sets the environment)
from multitoken.decoding import Exact, Policy, StaticK

VOCABULARY, MASK, EOS = 200, 199, 7


def metadata_of(temperature: float = 0.0, processors: tuple[Any, ...] = (), **more: Any) -> Any:
    """vLLM's record of how one request samples."""
    from vllm.v1.sample.logits_processor import LogitsProcessors
    from vllm.v1.sample.metadata import SamplingMetadata

    none = torch.zeros(1)
    return SamplingMetadata(
        temperature=torch.tensor([temperature]) if temperature else None,
        all_greedy=not temperature,
        all_random=bool(temperature),
        **({"top_p": None, "top_k": None, "max_num_logprobs": None} | more),
        generators={},
        no_penalties=True,
        prompt_token_ids=None,
        frequency_penalties=none,
        presence_penalties=none,
        repetition_penalties=none,
        output_token_ids=[[]],
        allowed_token_ids_mask=None,
        bad_words_token_ids={},
        logitsprocs=LogitsProcessors(processors),
    )


def sampler_of(policy: Policy, metadata: Any, logprobs_mode: str = "raw_logprobs") -> Any:
    """A sampler whose runner has one request, with a prompt of four tokens."""
    from vllm import SamplingParams
    from vllm.v1.sample.sampler import Sampler as OfVllm

    from multitoken.vllm.sampler import Sampler
    from multitoken.vllm.settings import Settings

    state = SimpleNamespace(sampling_params=SamplingParams(max_tokens=50, seed=1), num_prompt_tokens=4)
    runner = SimpleNamespace(
        model_config=SimpleNamespace(seed=0),
        device=torch.device("cpu"),
        input_batch=SimpleNamespace(req_ids=["a"], sampling_metadata=metadata, num_tokens_no_spec=np.array([4])),
        requests={"a": state},
        sampler=OfVllm(logprobs_mode),
        discard_request_mask=SimpleNamespace(np=np.array([False])),
    )
    return Sampler(runner, Settings(MASK, 4, policy))


def masks(number: int) -> Any:
    """vLLM's record of a step that feeds masks."""
    return SimpleNamespace(num_draft_tokens=[number], draft_token_ids=torch.tensor([MASK] * number))


@pytest.mark.parametrize("fed", [0, 2])
def test_processed_logprobs_are_those_of_vllm(fed: int) -> None:
    """With `--logprobs-mode processed_logprobs`, log-probabilities come after the temperature and top-k."""
    from vllm.v1.sample.sampler import Sampler as OfVllm

    metadata = metadata_of(0.5, top_k=torch.tensor([5]), max_num_logprobs=5)
    logits = torch.randn(1, VOCABULARY, generator=torch.Generator().manual_seed(0)) * 2
    logits[:, MASK] = -torch.inf
    sampler = sampler_of(Exact(0.5, 4), metadata, "processed_logprobs")
    ours = sampler(logits.repeat(fed + 1, 1), masks(fed) if fed else None).logprobs_tensors
    theirs = OfVllm("processed_logprobs")(logits=logits.clone(), sampling_metadata=metadata).logprobs_tensors
    torch.testing.assert_close(ours.logprobs[0, 1:], theirs.logprobs[0, 1:])


class _Head:
    """A draft head that takes the likeliest token."""

    def draft(self, raw: Tensor, sure: Tensor, rows: Tensor, first: Tensor, **_: Any) -> tuple[Tensor, Tensor]:
        return raw[rows].argmax(-1), torch.ones(rows.shape)


def test_a_draft_head_does_not_end_a_text_before_min_tokens() -> None:
    """A policy that does not confirm writes what the head chooses, so the head must not choose EOS there."""
    from vllm.v1.sample.logits_processor.builtin import MinTokensLogitsProcessor

    minimum = MinTokensLogitsProcessor(SimpleNamespace(), torch.device("cpu"), False)
    metadata = metadata_of(processors=(minimum,))
    sampler = sampler_of(StaticK(4), metadata)
    sampler.draft_with(_Head())
    logits = torch.zeros(4, VOCABULARY)
    logits[2, EOS] = 50.0
    assert EOS in sampler(logits.clone(), masks(3)).sampled_token_ids[0]
    minimum.min_toks = {0: (10, [], {EOS}, False)}
    assert EOS not in sampler(logits.clone(), masks(3)).sampled_token_ids[0]
