"""A session with `vllm serve` on folders that `multitoken export` wrote, through the `openai` client. It prints what happens.

    multitoken export GATED gated && multitoken export FULL full && python -m benchmarks.vllm_session gated full

Runs in an environment with vLLM (`make test-vllm` builds one). For each folder: a stream, 16 requests at once, a client that
leaves in the middle of its stream, kill -9 in the middle of another stream, and a restart. All answers are compared, token for
token, with the next-token output of our own decoder: that of the original model for a gated folder, otherwise that of the same
weights. The script stops with an error at the first check that fails. The last line is JSON.
"""

import argparse
import asyncio
import json
import shlex
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import openai
import torch
import transformers

from benchmarks.vllm_local import facts
from benchmarks.vllm_server import OPTIONS, Server
from multitoken.decoding import Decoder, NextToken
from multitoken.models.prompts import encode_prompt
from multitoken.quickstart.corpus import LANGUAGE, examples
from multitoken.quickstart.embedded import checkpoint

NEW = 120
AT_ONCE = 16
TOKENS = {"return_token_ids": True}  # vLLM's extension of the protocol: token ids in addition to text


def say(line: str) -> None:
    print(line, flush=True)


def check(good: bool, what: str) -> None:
    if not good:
        raise SystemExit(f"check failed: {what}")


def wait(until: Any, what: str, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not until():
        check(time.monotonic() < end, f"{what} after {seconds:.0f} s")
        time.sleep(0.5)


class Session:
    """One folder, its questions and the right answers."""

    def __init__(self, model: Path, original: Path) -> None:
        self.model = model
        tokenizer = transformers.AutoTokenizer.from_pretrained(model)
        each = AT_ONCE // len(LANGUAGE)
        self.questions = [example.prompt for task in LANGUAGE for example in examples(task, "test", each)]
        self.gated = json.loads((model / "config.json").read_text())["mtp"]["method"] == "gated"
        weights = transformers.AutoModelForCausalLM.from_pretrained(
            original if self.gated else model, dtype=torch.float32
        )
        mask = json.loads((model / "config.json").read_text())["mtp"]["mask_token_id"]
        decoder = Decoder(weights.eval(), mask_id=mask)
        requests = [
            decoder.request(
                encode_prompt(question, tokenizer),
                policy=NextToken(),
                max_new_tokens=NEW,
                eos_ids=frozenset([tokenizer.eos_token_id]),
                row=i,
            )
            for i, question in enumerate(self.questions)
        ]
        self.right: list[list[int]] = [[] for _ in requests]
        for chunk in decoder.run(requests):
            self.right[chunk.row] += chunk.token_ids

    def run(self, folder: Path) -> None:
        whose = "the original model's" if self.gated else "next-token decoding's of the same weights"
        say(f"\n$ vllm serve {shlex.quote(self.model.name)} {' '.join(OPTIONS)}")
        started = time.monotonic()
        server = Server(self.model, folder)
        try:
            say(f"ready after {time.monotonic() - started:.0f} s")
            self.stream(server, whose)
            self.crowd(server, whose)
            self.leave(server)
            self.kill(server)
            server.stop()
            started = time.monotonic()
            server = Server(self.model, folder, port=server.port)
            say(f"started again on the same port, ready after {time.monotonic() - started:.0f} s")
            self.crowd(server, whose)
        finally:
            server.stop()

    def stream(self, server: Server, whose: str) -> None:
        events = [event for event in self._open(server, 0) if event.choices]
        emitted = [(event.choices[0].model_extra or {}).get("token_ids") or [] for event in events]
        ids = [token for tokens in emitted for token in tokens]
        check(ids == self.right[0], f"the stream's tokens, {ids}; expected {self.right[0]}")
        say(f"user: {self.questions[0]}")
        say("model: " + "|".join(text for event in events if (text := event.choices[0].delta.content)))
        say(f"streaming: {len(ids)} tokens in {sum(map(bool, emitted))} events, {whose}")

    def crowd(self, server: Server, whose: str) -> None:
        drafts, accepted = (f"vllm:spec_decode_num_{name}_total" for name in ("drafts", "accepted_tokens"))
        before = server.total(drafts), server.total(accepted)

        async def ask() -> list[Any]:
            async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=300) as client:
                calls = [
                    client.chat.completions.create(**self._request(i), extra_body=TOKENS)
                    for i in range(len(self.questions))
                ]
                return await asyncio.gather(*calls)

        found = [list(answer.choices[0].token_ids) for answer in asyncio.run(ask())]
        check(found == self.right, f"answers to {len(found)} requests at once")
        steps, drafted = server.total(drafts) - before[0], server.total(accepted) - before[1]
        per_step = f"{1 + drafted / steps:.2f} tokens per step that fed drafts or masks" if steps else "no masks fed"
        say(
            f"{len(found)} requests at once: {sum(map(len, found))} tokens, all {whose}; {drafted:.0f} drafts confirmed, "
            f"{per_step}"
        )

    def leave(self, server: Server) -> None:
        stream = self._open(server, 1, max_tokens=400, extra_body={"ignore_eos": True})
        next(iter(stream))
        check(server.total("vllm:num_requests_running") == 1, "one request running")
        stream.close()
        wait(lambda: server.total("vllm:num_requests_running") == 0, "a request whose client has left still runs")
        say("a client leaves after the first event: its request ends, none is running")
        answer = self._client(server).chat.completions.create(**self._request(2), extra_body=TOKENS)
        check(list(answer.choices[0].token_ids) == self.right[2], "the answer after it")
        say("the next request: right")

    def kill(self, server: Server) -> None:
        stream = iter(self._open(server, 3, max_tokens=400, extra_body={"ignore_eos": True}))
        next(stream)
        server.kill()
        say("kill -9 in the middle of a stream")
        try:
            for _ in stream:
                pass
            check(False, "a stream that was cut ended as if it were complete")
        except (openai.APIError, httpx.TransportError) as error:
            say(f"the client: {type(error).__name__}: {error}")
        time.sleep(5)
        if not server.is_gone():
            say("vLLM's engine process, which does not notice, is killed as well")

    def _request(self, i: int) -> dict[str, Any]:
        messages = [{"role": "user", "content": self.questions[i]}]
        return {"model": "m", "messages": messages, "max_tokens": NEW, "temperature": 0}

    def _open(self, server: Server, i: int, **more: Any) -> Any:
        options = {"extra_body": TOKENS} | self._request(i) | more
        return self._client(server).chat.completions.create(**options, stream=True)

    def _client(self, server: Server) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=300, max_retries=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+", help="folders that `multitoken export` wrote")
    parser.add_argument(
        "--original", type=Path, default=checkpoint("base"), help="the model that gated ones were adapted from"
    )
    a = parser.parse_args()
    for model in a.models:
        with tempfile.TemporaryDirectory() as folder:
            Session(model.resolve(), a.original).run(Path(folder))
    print(json.dumps({"provenance": facts()}))


if __name__ == "__main__":
    main()
