"""Features that a user of vLLM expects to keep working, in exact mode."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList

from .conftest import Case, Reference, engine

Generate = Callable[..., list[list[int]]]


@pytest.fixture(scope="module")
def llm() -> Iterator[Any]:
    with engine() as llm:
        yield llm


class Penalties(LogitsProcessor):
    """OpenAI's two penalties, which transformers lacks. They count the output only."""

    def __init__(self, prompt: int, frequency: float, presence: float) -> None:
        self.prompt, self.frequency, self.presence = prompt, frequency, presence

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        counts = torch.zeros_like(scores).scatter_add_(
            1, input_ids[:, self.prompt :], torch.ones_like(input_ids[:, self.prompt :], dtype=scores.dtype)
        )
        return scores - self.frequency * counts - self.presence * (counts > 0)


def test_frequency_and_presence_penalties(llm: Any, generate: Generate, reference: Reference, prompts) -> None:
    """Counts must grow within a step, with each draft."""
    for prompt in prompts[:4]:
        case = Case(prompt, 50, eos=False, more={"frequency_penalty": 0.6, "presence_penalty": 0.4})
        processor = LogitsProcessorList([Penalties(len(prompt), 0.6, 0.4)])
        assert generate(llm, [case]) == reference.plain([case], processors=processor)


def test_stop_strings(llm: Any, reference: Reference, prompts) -> None:
    """vLLM looks for them in the text after a step. What the step emitted after a stop string must be cut."""
    from vllm import SamplingParams

    tokenizer = llm.get_tokenizer()
    for prompt, tokens in zip(prompts[:6], reference.plain([Case(p, 60) for p in prompts[:6]]), strict=True):
        text = tokenizer.decode(tokens, skip_special_tokens=True)
        stop = text[len(text) // 2 : len(text) // 2 + 3]
        params = SamplingParams(temperature=0, max_tokens=60, stop=[stop])
        output = llm.generate([{"prompt_token_ids": prompt}], params, use_tqdm=False)[0].outputs[0]
        assert output.text == text[: text.index(stop)] and output.stop_reason == stop


def test_several_answers_of_one_request(llm: Any, generate: Generate, prompts) -> None:
    """Each answer has its own seed, made from the request's. The texts must be the same every time, and not all equal."""
    from vllm import SamplingParams

    params = SamplingParams(temperature=1.2, seed=7, n=4, max_tokens=30)
    runs = [llm.generate([{"prompt_token_ids": prompts[0]}], params, use_tqdm=False)[0].outputs for _ in range(2)]
    texts = [[tuple(answer.token_ids) for answer in run] for run in runs]
    assert texts[0] == texts[1] and len(set(texts[0])) > 1


def test_allowed_token_ids(llm: Any, generate: Generate, prompts) -> None:
    """Neither a token nor a draft may leave the set."""
    allowed = list(range(20, 60))
    tokens = generate(llm, [Case(p, 30, eos=False, more={"allowed_token_ids": allowed}) for p in prompts[:4]])
    assert all(set(row) <= set(allowed) and len(row) == 30 for row in tokens)


def test_structured_outputs(llm: Any, reference: Reference, prompts) -> None:
    """vLLM drops masks where a grammar applies, so these requests write one token per step. Their answers must still be valid."""
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    pattern = r"(yes|no), [0-9]{3} (apples|pears)"
    structured = SamplingParams(temperature=0, max_tokens=60, structured_outputs=StructuredOutputsParams(regex=pattern))
    free = SamplingParams(temperature=0, max_tokens=60)
    outputs = llm.generate(
        [{"prompt_token_ids": p} for p in prompts[:6]],
        [structured, free, structured, free, free, structured],
        use_tqdm=False,
    )
    for i in (0, 2, 5):
        assert re.fullmatch(pattern, outputs[i].outputs[0].text)
    tokens = [list(outputs[i].outputs[0].token_ids) for i in (1, 3, 4)]
    assert tokens == reference.plain([Case(prompts[i], 60) for i in (1, 3, 4)]), "neighbours of a grammar"


def test_prompt_logprobs(llm: Any, reference: Reference, prompts) -> None:
    """They must be the model's own, as without the plugin."""
    from vllm import SamplingParams

    prompt = prompts[4]
    params = SamplingParams(temperature=0, max_tokens=20, prompt_logprobs=1)
    output = llm.generate([{"prompt_token_ids": prompt}], params, use_tqdm=False)[0]
    with torch.inference_mode():
        expected = reference.decoder.model(torch.tensor([prompt])).logits[0].float().log_softmax(-1)
    assert [list(output.outputs[0].token_ids)] == reference.plain([Case(prompt, 20)])
    for place in range(1, len(prompt)):
        found = output.prompt_logprobs[place][prompt[place]].logprob
        assert abs(found - float(expected[place - 1, prompt[place]])) < 1e-4
