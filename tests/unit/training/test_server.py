"""Responses from any OpenAI-compatible server: they are the original's own, and none is lost or requested twice."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from multitoken.decoding.policies import NextToken
from multitoken.errors import DataError, UsageError
from multitoken.models.model import Model
from multitoken.quickstart.embedded import checkpoint, embedded_task
from multitoken.training import server as module
from multitoken.training.responses import write_missing
from multitoken.training.server import ResponseServer

Reply = tuple[int, dict[str, Any]]


@pytest.fixture(scope="module")
def original() -> Model:
    return Model.load(checkpoint("base"), device="cpu")


@pytest.fixture(scope="module")
def prompts(original: Model) -> list[list[int]]:
    return [original.encode(q.prompt) for q in embedded_task("word-problems", 5).questions]


@pytest.fixture
def serve() -> Iterator[Callable[..., str]]:
    """Starts servers that answer with a given function, and returns their URLs."""
    running = []

    def start(complete: Callable[[dict[str, Any]], Reply], models: tuple[str, ...] = ("base",)) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.reply(200, {"data": [{"id": name} for name in models]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                self.reply(*complete(body))

            def reply(self, code: int, value: dict[str, Any]) -> None:
                self.send_response(code)
                self.end_headers()
                self.wfile.write(json.dumps(value).encode())

            def log_message(self, *_: Any) -> None: ...

        running.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=running[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{running[-1].server_port}/v1"

    yield start
    for each in running:
        each.shutdown()
        each.server_close()


def completions(model: Model, *, tells_ids: bool) -> Callable[[dict[str, Any]], Reply]:
    """Answers as vLLM does, with the ids of the answer if they are requested. A server that does not know this field
    refuses the request."""

    def complete(body: dict[str, Any]) -> Reply:
        if "return_token_ids" in body and not tells_ids:
            return 400, {"error": "unknown field return_token_ids"}
        answer = model.generate(body["prompt"], policy=NextToken(), max_new_tokens=body["max_tokens"])
        choice: dict[str, Any] = {"text": answer.text, "finish_reason": answer.finish_reason}
        return 200, {"choices": [choice | ({"token_ids": list(answer.token_ids)} if tells_ids else {})]}

    return complete


def server_of(url: str, original: Model, **changes: Any) -> ResponseServer:
    options: dict[str, Any] = {"max_new_tokens": 120, "temperature": 1.0, "seed": 0} | changes
    return ResponseServer(url, original.tokenizer, original.decoder.eos_ids, **options)


@pytest.mark.parametrize("tells_ids", [True, False])
def test_a_server_writes_what_the_original_writes(
    original: Model, prompts: list[list[int]], serve: Callable[..., str], tells_ids: bool
) -> None:
    """Guards against a lost end token, a wrong order, and failing with a server that returns only text."""
    server = server_of(serve(completions(original, tells_ids=tells_ids)), original)
    server.check(original.hf, prompts)
    found = dict(server.write(prompts, [False] * len(prompts)))
    answers = [original.generate(p, policy=NextToken(), max_new_tokens=120) for p in prompts]
    assert [found[i] for i in range(len(prompts))] == [(list(a.token_ids), a.finish_reason == "stop") for a in answers]
    assert any(ended for _, ended in found.values())


def test_sampled_prompts_have_a_seed_of_their_own_each_time_the_same(
    original: Model, prompts: list[list[int]], serve: Callable[..., str]
) -> None:
    asked: list[dict[str, Any]] = []

    def complete(body: dict[str, Any]) -> Reply:
        asked.append(body)
        return 200, {"choices": [{"text": "", "token_ids": [5], "finish_reason": "length"}]}

    server = server_of(serve(complete), original, temperature=0.7, max_positions=len(prompts[0]) + 30)
    for _ in range(2):
        list(server.write(prompts[:2], [True, False]))
    by_prompt = {tuple(p): [b for b in asked if b["prompt"] == p] for p in prompts[:2]}
    first, second = by_prompt.values()
    assert [b["temperature"] for b in first] == [0.7, 0.7] and [b["temperature"] for b in second] == [0.0, 0.0]
    assert first[0]["seed"] == first[1]["seed"] != second[0]["seed"]
    assert first[0]["max_tokens"] == 30


def test_another_model_is_refused(original: Model, prompts: list[list[int]], serve: Callable[..., str]) -> None:
    """Guards against training on another model's text as if it were the original's, for example a checkpoint of another
    step."""

    def complete(body: dict[str, Any]) -> Reply:
        return 200, {"choices": [{"text": "", "token_ids": [77, 78, 79], "finish_reason": "length"}]}

    with pytest.raises(UsageError, match="serves a different model from the one that is adapted"):
        server_of(serve(complete), original).check(original.hf, prompts)


def test_nothing_is_written_twice_or_lost_when_the_server_goes_away(
    original: Model,
    prompts: list[list[int]],
    serve: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Guards against a run that starts again from the beginning after a restart of the server. Here the server is busy
    once, which the run waits out, and then it is gone."""
    monkeypatch.setattr(module, "_FIRST_PAUSE", 0.01)
    monkeypatch.setattr(module, "IN_FLIGHT", 1)
    asked: list[int] = []

    def complete(body: dict[str, Any]) -> Reply:
        asked.append(body["prompt"][-5])
        if len(asked) == 1:
            return 503, {"error": "busy"}
        if len(asked) > 3:
            return 500, {"error": "gone"}
        return 200, {"choices": [{"text": "", "token_ids": [len(asked)], "finish_reason": "length"}]}

    def run(server: ResponseServer) -> list:
        def write(missing: list[list[int]], number: int) -> Iterator[dict]:
            for place, response in server.write(missing, [False] * len(missing)):
                yield {place: response}

        return write_missing(prompts, write, tmp_path / "responses.jsonl", key="k")

    with pytest.raises(DataError, match=r"does not answer: 500: .*gone.* kept; run again with --resume"):
        run(server_of(serve(complete), original))
    kept = (tmp_path / "responses.jsonl").read_text().splitlines()
    assert len(kept) == 2
    fresh: list[Any] = []

    def again(body: dict[str, Any]) -> Reply:
        fresh.append(body["prompt"])
        return 200, {"choices": [{"text": "", "token_ids": [9], "finish_reason": "length"}]}

    responses = run(server_of(serve(again), original))
    assert len(fresh) == len(prompts) - 2
    assert sorted(ids[0] for ids, _ in responses) == [2, 3, 9, 9, 9]


def test_servers_that_cannot_be_used(original: Model, serve: Callable[..., str]) -> None:
    with pytest.raises(UsageError, match=r"no OpenAI-compatible server answers at http://127\.0\.0\.1:9/v1"):
        server_of("http://127.0.0.1:9/v1", original)
    url = serve(lambda body: (200, {}), models=("a", "b"))
    with pytest.raises(UsageError, match=f"serves a, b; name one: {url}#NAME"):
        server_of(url, original)
    with pytest.raises(UsageError, match="does not serve 'c'; it serves a, b"):
        server_of(f"{url}#c", original)
    assert server_of(f"{url}#b", original).model == "b"


@pytest.mark.parametrize("reply", [(503, {"error": "loading"}), (200, {"error": "loading"}), (200, {"choices": []})])
def test_a_server_without_answers_is_an_error_in_words(
    reply: Reply, original: Model, prompts: list[list[int]], serve: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server lists its models before it can use them. Its first answers are then errors, or lack what is read from them."""
    monkeypatch.setattr(module, "_FIRST_PAUSE", 0.001)
    server = server_of(serve(lambda body: reply), original)
    with pytest.raises(UsageError, match="does not answer a prompt of token ids"):
        server.check(original.hf, prompts)
    with pytest.raises(DataError, match=r"does not answer: .*run again with --resume"):
        list(server.write(prompts[:1], [False]))
