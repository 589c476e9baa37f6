"""The server over HTTP on this machine, used with the `openai` client and without it."""

import asyncio
import gc
import json
import socket
import threading
import urllib.error
import urllib.request
from typing import Any

import openai
import pytest
import torch

import multitoken as mt
from multitoken.decoding.failures import DecodingError
from multitoken.models.model import Model
from multitoken.models.mtp_config import MtpConfig
from multitoken.quickstart.corpus import examples
from multitoken.quickstart.embedded import checkpoint
from multitoken.serving.app import create_app
from multitoken.serving.options import ServeOptions
from tests.serving import Running, running, until
from tests.tiny import tiny_llama, tiny_tokenizer

TEMPLATE = (
    "{% for m in messages %}{{ m.role }} {{ m.content }} {% for c in m.tool_calls or [] %}call {% endfor %}{% endfor %}"
    "{% if tools %}w7 {{ tools|length }}{% endif %}{% if add_generation_prompt %} w4{% endif %}"
)
NAN = 50  # a token whose embedding is NaN


def tiny_model() -> Model:
    tokenizer = tiny_tokenizer(60, extra=["<MTP>"], chat_template=TEMPLATE)
    hf = tiny_llama(tokenizer, max_position_embeddings=4096)
    hf.generation_config.eos_token_id = hf.config.eos_token_id = None
    tokenizer.eos_token = None
    mtp = MtpConfig(k=4, mask_token_id=59, mask_token="<MTP>", method="full", base_name="b", base_hash="sha256:0")
    model = Model(hf, tokenizer, mtp)
    hf.get_input_embeddings().weight.data[NAN] = float("nan")
    hf.lm_head.weight.data[NAN] = 0  # so that the model itself does not write it
    return model


@pytest.fixture(scope="module")
def tiny():
    with running(tiny_model(), max_rows=8, queue=250, max_tokens=3000) as server:
        yield server


@pytest.fixture(scope="module")
def gated() -> Model:
    return mt.load(checkpoint("gated"))


@pytest.fixture(scope="module")
def server(gated: Model):
    with running(gated, name="demo", max_rows=4) as server:
        yield server


PROBLEMS = [example.prompt for example in examples("word-problems", "test", 2)]
IDS: dict[str, Any] = {"return_token_ids": True}


def expected(model: Model, prompts: list[str], **options: Any) -> list[list[int]]:
    """The answers of the engine alone."""
    answers = model.generate(prompts, **({"policy": mt.NextToken(), "max_new_tokens": 60, "adaptive": False} | options))
    return [list(answer.token_ids) for answer in answers]


def chat(server: Running, prompt: str, extra: dict[str, Any] | None = None, **options: Any) -> Any:
    options = {"model": server.options.name, "max_tokens": 60} | options
    messages = [{"role": "user", "content": prompt}]
    return server.client().chat.completions.create(messages=messages, extra_body=IDS | (extra or {}), **options)


def post(server: Running, body: bytes, path: str = "/v1/completions", **headers: str) -> tuple[int, dict[str, Any]]:
    request = urllib.request.Request(
        server.url + path,
        body,
        {"Content-Type": "application/json", **{k.replace("_", "-"): v for k, v in headers.items()}},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def test_every_policy_side_by_side_equals_the_engine_alone(server: Running, gated: Model) -> None:
    """Through HTTP and in one batch, every token must be the engine's, and usage must count the passes."""
    policies: list[tuple[dict[str, Any], Any]] = [
        ({}, mt.NextToken()),
        ({"policy": "exact", "threshold": 0.2, "k": 8}, mt.NextToken()),
        ({"policy": "next-token"}, mt.NextToken()),
        ({"policy": "confadapt", "threshold": 0.8}, mt.ConfAdapt(0.8)),
        ({"policy": "static", "k": 3}, mt.StaticK(3)),
        ({"policy": "exact", "threshold": 0.2, "branches": 4}, mt.NextToken()),
    ]

    async def ask() -> list[Any]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0) as client:
            calls = [
                client.chat.completions.create(
                    model="demo",
                    messages=[{"role": "user", "content": prompt}],
                    max_tokens=60,
                    extra_body=IDS | {"mtp": mtp},
                )
                for mtp, _ in policies
                for prompt in PROBLEMS
            ]
            return await asyncio.gather(*calls)

    answers = asyncio.run(ask())
    right = [ids for _, policy in policies for ids in expected(gated, PROBLEMS, policy=policy)]
    assert [answer.choices[0].token_ids for answer in answers] == right
    for answer, ids in zip(answers, right, strict=True):
        assert answer.choices[0].message.content == gated.tokenizer.decode(ids, skip_special_tokens=True)
        assert answer.usage.completion_tokens == len(ids)
        assert answer.choices[0].finish_reason == ("stop" if ids[-1] == gated.tokenizer.eos_token_id else "length")
    next_token = answers[2 * len(PROBLEMS)].usage
    assert next_token.tokens_per_step == 1 and next_token.forward_passes == next_token.completion_tokens
    assert answers[len(PROBLEMS)].usage.forward_passes < next_token.forward_passes / 2


def test_a_stream_is_the_answer_an_event_a_pass(server: Running, gated: Model) -> None:
    [ids] = expected(gated, PROBLEMS[:1], max_new_tokens=150)
    events = list(chat(server, PROBLEMS[0], max_tokens=150, stream=True, stream_options={"include_usage": True}))
    *pieces, last = events
    assert [token for event in pieces for token in event.choices[0].token_ids] == ids
    text = "".join(event.choices[0].delta.content for event in pieces)
    assert text == gated.tokenizer.decode(ids, skip_special_tokens=True)
    assert pieces[0].choices[0].delta.role == "assistant" and pieces[-1].choices[0].finish_reason == "stop"
    assert last.choices == [] and last.usage.forward_passes == len(pieces) < len(ids)
    assert all(event.usage is None for event in pieces) and len({event.id for event in events}) == 1


def test_sampling_is_the_engines(server: Running, gated: Model) -> None:
    """One seed gives one text, under Exact and next-token. The n answers are the rows of `num_return_sequences`."""
    options = {"temperature": 0.9, "top_p": 0.95, "seed": 7}
    right = expected(gated, PROBLEMS[:1], num_return_sequences=3, **options)
    for mtp in ({}, {"policy": "next-token"}):
        answer = chat(server, PROBLEMS[0], {"mtp": mtp}, n=3, **options)
        assert [choice.token_ids for choice in answer.choices] == right
    assert len(set(map(tuple, right))) > 1
    free = [chat(server, PROBLEMS[0], temperature=2.0).choices[0].token_ids for _ in range(2)]
    assert free[0] != free[1], "no seed: a new text each time"
    assert (
        chat(server, PROBLEMS[0], temperature=0, seed=3, top_p=0.5).choices[0].token_ids == expected(gated, PROBLEMS)[0]
    )


def test_penalties_are_the_engines(server: Running, gated: Model) -> None:
    for options in ({"presence_penalty": 1.5}, {"frequency_penalty": -0.5, "presence_penalty": 0.3}):
        assert chat(server, PROBLEMS[1], **options).choices[0].token_ids == expected(gated, PROBLEMS, **options)[1]
    right = expected(gated, PROBLEMS[1:2], repetition_penalty=1.3)[0]
    assert chat(server, PROBLEMS[1], {"repetition_penalty": 1.3}).choices[0].token_ids == right


def test_stop_strings_end_inside_a_chunk(server: Running, gated: Model) -> None:
    """The text ends before the stop string. Tokens are counted up to the one that completes it."""
    [ids] = expected(gated, PROBLEMS[:1])
    text = gated.tokenizer.decode(ids, skip_special_tokens=True)
    stop = text[20:24]
    answer = chat(server, PROBLEMS[0], stop=[stop, "never"])
    assert answer.choices[0].message.content == text[: text.index(stop)]
    assert answer.choices[0].finish_reason == "stop"
    kept = answer.choices[0].token_ids
    assert kept == ids[: len(kept)] and stop in gated.tokenizer.decode(kept)
    assert stop not in gated.tokenizer.decode(kept[:-1])
    events = list(chat(server, PROBLEMS[0], stop=stop, stream=True))
    assert "".join(event.choices[0].delta.content for event in events) == text[: text.index(stop)]


def test_logprobs_are_the_models(server: Running, gated: Model) -> None:
    """Compared with one ordinary pass over prompt and answer."""
    answer = chat(server, PROBLEMS[0], logprobs=True, top_logprobs=2)
    ids, content = answer.choices[0].token_ids, answer.choices[0].logprobs.content
    prompt = gated.encode(PROBLEMS[0])
    with torch.no_grad():
        logits = gated.hf(torch.tensor([prompt + ids[:-1]])).logits[0, len(prompt) - 1 :]
    right = logits.log_softmax(-1)
    assert len(content) == len(ids)
    for place, (token, entry) in enumerate(zip(ids, content, strict=True)):
        assert entry.logprob == pytest.approx(float(right[place, token]), abs=1e-3)
        assert [top.logprob for top in entry.top_logprobs] == pytest.approx(
            right[place].topk(2).values.tolist(), abs=1e-3
        )
        assert entry.token == gated.tokenizer.decode([token])
    plain = server.client().completions.create(model="demo", prompt="Ada has", max_tokens=9, logprobs=1, extra_body=IDS)
    found = plain.choices[0].logprobs
    assert len(found.tokens) == len(plain.choices[0].token_ids) == 9
    assert [plain.choices[0].text[i:].startswith(t) for i, t in zip(found.text_offset, found.tokens, strict=True)] == [
        True
    ] * 9


def test_completions_take_texts_and_ids(tiny: Running) -> None:
    prompts = [[4, 5, 6], [7, 8], [9]]
    engine = tiny.model.decoder.decode(prompts, policy=mt.NextToken(), max_new_tokens=9)
    right: list[list[int]] = [[], [], []]
    for chunk in engine:
        right[chunk.row] += chunk.token_ids
    for given in (prompts, ["w4 w5 w6", "w7 w8", "w9"]):
        answer = tiny.client().completions.create(model="tiny", prompt=given, max_tokens=9, extra_body=IDS)
        assert [choice.token_ids for choice in answer.choices] == right
    assert answer.usage is not None and answer.usage.prompt_tokens == 6
    one = tiny.client().completions.create(model="tiny", prompt=[7, 8], max_tokens=9, extra_body=IDS)
    assert one.choices[0].token_ids == right[1]


def test_tools_go_through_the_template(tiny: Running) -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    messages = [
        {"role": "w5", "content": [{"type": "text", "text": "w6"}, {"type": "text", "text": " w8"}]},
        {"role": "w9", "content": None, "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f"}}]},
    ]
    body = {"model": "tiny", "messages": [*messages, {"role": "w6", "content": "w7"}], "max_tokens": 1}
    plain = post(tiny, json.dumps(body).encode(), "/v1/chat/completions")[1]["usage"]["prompt_tokens"]
    for choice, more in (("auto", 2), ("none", 0)):
        status, answer = post(
            tiny, json.dumps(body | {"tools": tools, "tool_choice": choice}).encode(), "/v1/chat/completions"
        )
        assert (status, answer["usage"]["prompt_tokens"] - plain) == (200, more)


def test_confidences_are_shown_to_those_who_ask(server: Running) -> None:
    """The playground's colours need each token's text and the confidence that the policy compared with its threshold."""
    options = {"mtp": {"policy": "confadapt", "threshold": 0.6, "confidences": True}}
    choice = chat(server, PROBLEMS[0], options).choices[0]
    assert "".join(choice.mtp["tokens"]) == choice.message.content
    assert len(choice.mtp["confidences"]) == len(choice.token_ids) == sum(choice.mtp["chunk_sizes"])
    place = 0
    for size in choice.mtp["chunk_sizes"]:
        assert size == 1 or min(choice.mtp["confidences"][place : place + size]) >= 0.6
        place += size


@pytest.mark.parametrize(
    ("change", "status", "says"),
    [
        ({"response_format": {"type": "json_object"}}, 400, "response_format is not supported"),
        ({"logit_bias": {"5": 1}}, 400, "logit_bias is not supported"),
        ({"echo": True}, 400, "echo is not supported"),
        ({"temprature": 1}, 400, "did you mean 'temperature'"),
        ({"temperature": "hot"}, 400, "temperature is 'hot'; expected a number"),
        ({"temperature": -1}, 400, "temperature is -1; expected at least 0"),
        ({"temperature": 1e-320}, 400, "temperature is 1e-320: expected 0 (greedy)"),
        ({"top_p": 0}, 400, "top_p is 0"),
        ({"max_tokens": 0}, 400, "max_tokens is 0"),
        ({"max_tokens": 3001}, 400, "allows at most 3000"),
        ({"max_tokens": True}, 400, "max_tokens is True; expected a whole number"),
        ({"n": 1000}, 400, "accepts at most 258"),
        ({"stop": 5}, 400, "stop is 5; expected text or a list"),
        ({"stop": ["a", ""]}, 400, "stop contains an empty string"),
        ({"seed": 1 << 70}, 400, "seed is 1180591620717411303424"),
        ({"model": "other"}, 404, "there is no model 'other'"),
        ({"prompt": ""}, 400, "prompt"),
        ({"prompt": []}, 400, "prompt is empty"),
        ({"prompt": [[]]}, 400, "is empty"),
        ({"prompt": [4, 60]}, 400, "token id 60"),
        ({"prompt": [59]}, 400, "mask token"),
        ({"prompt": "w4 <MTP>"}, 400, "mask token"),
        ({"prompt": [4] * 4096}, 400, "4096 positions"),
        ({"prompt": "w4 \ud800"}, 400, "not valid Unicode"),
        ({"prompt": None}, 400, "prompt is None; expected text or a list"),
        (
            {"mtp": {"policy": "fast"}},
            400,
            "mtp.policy is 'fast'; expected 'exact', 'confadapt', 'static' or 'next-token'",
        ),
        ({"mtp": {"policy": "next-token", "k": 2}}, 400, "has no k"),
        ({"mtp": {"policy": "confadapt", "branches": 2}}, 400, "has no branches"),
        ({"mtp": {"branches": 33}}, 400, "mtp.branches is 33"),
        ({"mtp": {"policy": "static"}}, 400, "needs k"),
        ({"mtp": {"k": 9}}, 400, "trained for k up to 4"),
        ({"mtp": {"threshold": 1.5}}, 400, "mtp.threshold is 1.5"),
        ({"mtp": {"treshold": 1}}, 400, "mtp.treshold is not a field of this request; did you mean 'threshold'?"),
        ({"stream_options": {"include_usage": True}}, 400, "needs stream"),
        ({"logprobs": True}, 400, "logprobs is True"),
    ],
)
def test_what_cannot_be_is_a_400_that_names_it(tiny: Running, change: dict[str, Any], status: int, says: str) -> None:
    body = {"model": "tiny", "prompt": "w4", "max_tokens": 2} | change
    found, answer = post(tiny, json.dumps(body).encode())
    assert found == status and says in answer["error"]["message"], answer
    assert set(answer["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"null", b"1", b'"x"', b"\xff\xfe", b'{"model": "tiny"}', b"[" * 100_000, b'{"a":' * 50_000,
        b'{"model": "tiny", "prompt": "w4", "temperature": NaN}', b'{"model": "tiny", "prompt": "w4", "max_tokens": 1e400}',
        b'{"model": "tiny", "prompt": {"a": 1}}', b'{"model": 3, "prompt": "w4"}', b'{"model": "tiny", "prompt": [4, "w4"]}',
    ],
)  # fmt: skip
def test_malformed_bodies_are_400s(tiny: Running, body: bytes) -> None:
    for path in ("/v1/completions", "/v1/chat/completions"):
        status, answer = post(tiny, body, path)
        assert status == 400 and answer["error"]["message"]
    assert chat(tiny, "w4 w5", max_tokens=2).choices[0].token_ids


def test_null_is_the_default_of_stream(tiny: Running) -> None:
    """OpenAI's API allows null, and some clients send it for everything that is not set."""
    body = {"model": "tiny", "prompt": "w4", "max_tokens": 2, "stream": None, "n": None, "stop": None, "seed": None}
    assert post(tiny, json.dumps(body).encode())[0] == 200


def test_a_policy_that_the_model_cannot_decode_with_is_an_error_at_the_start() -> None:
    """Otherwise the server starts, and every request is refused."""
    with pytest.raises(DecodingError, match="trained for k up to 4"):
        create_app(tiny_model(), ServeOptions("tiny", policy=mt.Exact(0.5, k=9)))


def test_oversized_bodies_are_413s(tiny: Running) -> None:
    """A body larger than the limit is never stored, with or without a declared length. Its sender may get the answer only after
    it has sent everything."""
    assert post(tiny, b'{"model": "' + b"a" * (1 << 20) + b'"}')[0] == 413
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
    pieces = (b"10000\r\n" + b"a" * 0x10000 + b"\r\n") * 20
    for rest in (b"Transfer-Encoding: chunked\r\n\r\n" + pieces + b"0\r\n\r\n", b"Content-Length: 999999999\r\n\r\n"):
        with socket.create_connection(tiny.socket.getsockname()[:2], timeout=20) as raw:
            raw.sendall(head + rest)
            assert raw.recv(65536).startswith(b"HTTP/1.1 413")


def test_200_at_once_are_all_right(tiny: Running) -> None:
    prompts = [[4 + i % 40, 5 + i % 7] for i in range(200)]
    right: list[list[int]] = [[] for _ in prompts]
    for chunk in tiny.model.decoder.decode(prompts, policy=mt.NextToken(), max_new_tokens=8):
        right[chunk.row] += chunk.token_ids

    async def ask() -> list[Any]:
        async with openai.AsyncOpenAI(base_url=f"{tiny.url}/v1", api_key="-", timeout=60, max_retries=0) as client:
            calls = [
                client.completions.create(
                    model="tiny",
                    prompt=prompt,
                    max_tokens=8,
                    extra_body=IDS | {"mtp": {"threshold": 0.0} if i % 2 else {"policy": "next-token"}},
                )
                for i, prompt in enumerate(prompts)
            ]
            return await asyncio.gather(*calls)

    assert [answer.choices[0].token_ids for answer in asyncio.run(ask())] == right
    until(tiny.idle, "all places are free")


LONG = {"model": "tiny", "prompt": [4, 5], "max_tokens": 3000, "mtp": {"policy": "next-token"}}


def test_a_client_that_goes_away_frees_its_row(tiny: Running) -> None:
    """The client leaves in the middle of a stream, or while it waits for a whole answer."""
    for stream in [tiny.client().completions.create(**_without_mtp(LONG), stream=True) for _ in range(3)]:
        next(iter(stream))
        stream.close()
    until(tiny.idle, "the rows are free")
    body = json.dumps(LONG).encode()
    raw = socket.create_connection(tiny.socket.getsockname()[:2])
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    raw.sendall(head.encode() + body)
    until(lambda: not tiny.idle(), "the request is at work")
    raw.close()
    until(tiny.idle, "the row is free")


def test_a_row_of_nan_is_a_500_and_harms_no_other(tiny: Running) -> None:
    """Before the first token, the error is an HTTP status, whether the answer is streamed or not."""
    good: list[Any] = []
    thread = threading.Thread(target=lambda: good.append(chat(tiny, "w6 w7", max_tokens=200)))
    thread.start()
    for stream in (False, True):
        with pytest.raises(openai.InternalServerError, match="not numbers"):
            chat(tiny, f"w4 w{NAN}", stream=stream)
    thread.join()
    assert good[0].choices[0].token_ids == chat(tiny, "w6 w7", max_tokens=200).choices[0].token_ids
    with urllib.request.urlopen(f"{tiny.url}/metrics") as response:
        assert "multitoken_failed_rows_total 2" in response.read().decode()


def test_a_failure_in_the_middle_of_a_stream_is_an_event(tiny: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = iter(chat(tiny, "w4 w5", max_tokens=3000, stream=True))
    next(stream)
    with monkeypatch.context() as patch:
        patch.setattr(tiny.model.hf, "forward", lambda *args, **kwargs: 1 / 0)
        with pytest.raises(openai.APIError, match="ZeroDivisionError"):
            for _ in stream:
                pass
        with urllib.request.urlopen(f"{tiny.url}/health") as response:
            health = json.load(response)
        assert health["status"] == "ok" and "ZeroDivisionError" in health["trouble"]
    assert chat(tiny, "w4 w5", max_tokens=2).choices[0].token_ids
    until(tiny.idle, "the row is free")


def test_a_full_queue_is_a_429() -> None:
    with running(tiny_model(), max_rows=1, queue=1, max_tokens=3000) as server:
        held = [server.client().completions.create(**_without_mtp(LONG), stream=True) for _ in range(1)]
        next(iter(held[0]))
        waiting = threading.Thread(target=lambda: post(server, json.dumps({**LONG, "max_tokens": 3}).encode()))
        waiting.start()
        until(lambda: server.service.health()["rows"] == 2, "one runs and one waits")
        with pytest.raises(openai.RateLimitError) as refused:
            chat(server, "w4")
        assert int(refused.value.response.headers["Retry-After"]) >= 1
        held[0].close()
        waiting.join(30)
        assert chat(server, "w4", max_tokens=2).choices[0].finish_reason == "length"


def _without_mtp(body: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in body.items() if key != "mtp"}


def test_a_request_has_its_time() -> None:
    with running(tiny_model(), timeout=0.2, max_tokens=3000) as server:
        assert post(server, json.dumps(LONG).encode())[0] == 504
        with pytest.raises(openai.APIError, match="not complete after"):
            list(server.client().completions.create(**_without_mtp(LONG), stream=True))
        until(server.idle, "the rows are free")


def test_shutdown_finishes_what_it_can_and_says_so_of_the_rest() -> None:
    """Within the grace period, a short answer is completed. A long one ends with an error and does not just break off."""
    with running(tiny_model(), grace=0.5, max_tokens=3000) as server:
        long = server.client().completions.create(**_without_mtp(LONG), stream=True)
        next(iter(long))
        short: list[Any] = []
        asks = threading.Thread(
            target=lambda: short.append(post(server, json.dumps({**LONG, "max_tokens": 20}).encode()))
        )
        asks.start()
        until(lambda: server.service.health()["rows"] == 2, "both are at work")
        server.server.should_exit = True
        with pytest.raises(openai.APIError, match="shutting down"):
            list(long)
        asks.join()
        assert short[0][0] == 200 and short[0][1]["usage"]["completion_tokens"] == 20


def test_only_with_the_key() -> None:
    with running(tiny_model(), api_key="secret") as server:
        for path in ("/v1/models", "/metrics", "/openapi.json"):
            with pytest.raises(urllib.error.HTTPError, match="401"):
                urllib.request.urlopen(server.url + path)
        for path in ("/", "/health"):
            urllib.request.urlopen(server.url + path).close()
        with pytest.raises(openai.AuthenticationError):
            chat(server, "w4")
        client = server.client().with_options(api_key="secret")
        assert [model.id for model in client.models.list()] == ["tiny"]


def test_pages_of_other_sites_are_kept_out(tiny: Running) -> None:
    """CORS is off, a body that is not declared as JSON is refused, and so is a host name that was made to point here."""
    body = json.dumps({"model": "tiny", "prompt": "w4", "max_tokens": 1}).encode()
    assert post(tiny, body, Content_Type="text/plain")[0] == 400
    assert post(tiny, body, Host="evil.example")[0] == 403
    request = urllib.request.Request(f"{tiny.url}/v1/models", headers={"Origin": "http://evil.example"})
    with urllib.request.urlopen(request) as response:
        assert "Access-Control-Allow-Origin" not in response.headers


def test_a_page_that_may_call_can_read_why_it_is_refused() -> None:
    """A browser hides a response without CORS headers from the page, errors included."""
    site = "https://a.example"
    with running(tiny_model(), api_key="secret", origins=(site,)) as server:
        request = urllib.request.Request(f"{server.url}/v1/models", headers={"Origin": site})
        with pytest.raises(urllib.error.HTTPError, match="401") as refused:
            urllib.request.urlopen(request)
        refused.value.close()
        assert refused.value.headers["Access-Control-Allow-Origin"] == site
        asks = {
            "Origin": site,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization",
        }
        request = urllib.request.Request(f"{server.url}/v1/completions", headers=asks, method="OPTIONS")
        with urllib.request.urlopen(request) as response:
            assert response.status == 200 and response.headers["Access-Control-Allow-Origin"] == site


def test_models_and_metrics(tiny: Running) -> None:
    [card] = tiny.client().models.list().data
    assert (card.id, card.model_extra["mtp"]["k"]) == ("tiny", 4)
    assert tiny.client().models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError):
        tiny.client().models.retrieve("gpt")

    def metric(name: str) -> float:
        with urllib.request.urlopen(f"{tiny.url}/metrics") as response:
            lines = response.read().decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))

    tokens, passes = "multitoken_generated_tokens_total", "multitoken_forward_passes_total"
    before = metric(tokens), metric(passes), metric("multitoken_time_to_first_token_seconds_count")
    usage = chat(tiny, "w4 w5", {"mtp": {"threshold": 0.0}}, n=2).usage
    after = metric(tokens), metric(passes), metric("multitoken_time_to_first_token_seconds_count")
    assert [b - a for a, b in zip(before, after, strict=True)] == [usage.completion_tokens, usage.forward_passes, 2]


def test_memory_does_not_grow(tiny: Running) -> None:
    """Objects that a request leaves behind would be counted here. The requests are streams, whole answers, refusals and clients
    that leave."""

    def some() -> None:
        for i in range(25):
            chat(tiny, f"w{4 + i} w5", max_tokens=3)
            list(chat(tiny, "w4 w5", max_tokens=3, stream=True))
            post(tiny, b"{")
            stream = chat(tiny, "w4 w5", max_tokens=3000, stream=True)
            next(iter(stream))
            stream.close()
        until(tiny.idle, "all have left")
        gc.collect()

    some()
    before = len(gc.get_objects())
    some()
    assert len(gc.get_objects()) - before < 500, "100 requests leave less than 5 objects each"
