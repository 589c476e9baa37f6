"""`vllm serve CHECKPOINT` in separate processes, used over HTTP with the `openai` client."""

import asyncio
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from benchmarks.vllm_server import Server

from .conftest import CHECKPOINT, Case, Reference


@pytest.fixture(scope="module")
def server(tmp_path_factory: Any) -> Iterator[Server]:
    server = Server(CHECKPOINT, tmp_path_factory.mktemp("serve"))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def url(server: Server) -> str:
    return server.url


@pytest.fixture(scope="module")
def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", timeout=300, max_retries=0)


def texts(tokenizer: Any, rows: list[list[int]]) -> list[str]:
    return [tokenizer.decode(tokens, skip_special_tokens=True) for tokens in rows]


def test_sixteen_at_once(url: str, reference: Reference, prompts, tokenizer: Any) -> None:
    """Exactly the texts of next-token decoding, through HTTP and another process."""

    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", timeout=300) as client:
            calls = [client.completions.create(model="m", prompt=p, max_tokens=60, temperature=0) for p in prompts[:16]]
            return [answer.choices[0].text for answer in await asyncio.gather(*calls)]

    assert asyncio.run(ask()) == texts(tokenizer, reference.plain([Case(p, 60) for p in prompts[:16]]))


def test_streaming(client: openai.OpenAI, reference: Reference, prompts, tokenizer: Any) -> None:
    """The tokens of a step come as one event, so there are fewer events than tokens. Together they must be the text."""
    expected = texts(tokenizer, reference.plain([Case(prompts[1], 60)]))[0]
    events = client.completions.create(model="m", prompt=prompts[1], max_tokens=60, temperature=0, stream=True)
    pieces = [event.choices[0].text for event in events if event.choices]
    assert "".join(pieces) == expected and 1 < len(pieces) < len(tokenizer(expected).input_ids) / 2


def test_a_client_that_leaves(client: openai.OpenAI, reference: Reference, prompts, tokenizer: Any) -> None:
    """The next request must not be affected."""
    stream = client.completions.create(
        model="m", prompt=prompts[0], max_tokens=300, temperature=0, stream=True, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    stream.close()
    answer = client.completions.create(model="m", prompt=prompts[2], max_tokens=60, temperature=0)
    assert answer.choices[0].text == texts(tokenizer, reference.plain([Case(prompts[2], 60)]))[0]


@pytest.mark.parametrize(
    ("xargs", "message"),
    [
        ({"mtp_threshold": 1.7}, "threshold is 1.7"),
        ({"mtp_threshold": "high"}, "threshold is 'high'"),
        ({"mtp_policy": "confadapt"}, "are not confirmed"),
        ({"mtp_k": 99}, "choose k <= 16"),
    ],
)
def test_bad_values_are_a_400(client: openai.OpenAI, prompts, xargs, message) -> None:
    """The body gives the reason. A stream has already begun by then, so vLLM sends the same error as its first event."""
    wanted = {"model": "m", "prompt": prompts[0], "max_tokens": 5, "extra_body": {"vllm_xargs": xargs}}
    with pytest.raises(openai.BadRequestError, match=message):
        client.completions.create(**wanted)
    with pytest.raises(openai.APIError, match=message):
        list(client.completions.create(**wanted, stream=True))


def test_good_values_and_metrics(
    server: Server, client: openai.OpenAI, reference: Reference, prompts, tokenizer: Any
) -> None:
    """vLLM's speculative metrics must count confirmed drafts by their position."""
    case = Case(prompts[3], 90)
    answer = client.completions.create(
        model="m", prompt=case.prompt, max_tokens=90, temperature=0, extra_body={"vllm_xargs": {"mtp_threshold": 0.3}}
    )
    assert answer.choices[0].text == texts(tokenizer, reference.plain([case]))[0]
    counts = server.metrics()
    accepted = [
        value for name, value in counts.items() if name.startswith("vllm:spec_decode_num_accepted_tokens_total")
    ]
    by_place = {name: value for name, value in counts.items() if "accepted_tokens_per_pos_total" in name}
    assert accepted and accepted[0] > 0 and accepted[0] == sum(by_place.values())
