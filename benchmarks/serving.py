"""`multitoken serve demo` under load, from another process over loopback: Exact compared with next-token decoding and the bare engine.

    python -m benchmarks.serving --pairs 15 --requests 2000

The model computes with `--threads` threads (1), both in the server and in the bare engine. With one thread, the second of two cores
is left to HTTP and the client. In a pair, each of the three answers the same word problems, one right after the other. Ratios are
medians over pairs, with the quartiles. The flood sends more requests at a time than the server has slots for, waits when the
server says so, and compares every answer, token for token, with the engine alone. The last line is JSON.
"""

import argparse
import asyncio
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import time
from typing import Any

import httpx2
import psutil
import torch
import transformers

import multitoken as mt
from multitoken.models.model import Model
from multitoken.quickstart.corpus import examples
from multitoken.quickstart.embedded import checkpoint

NEW = 100
STREAMS = (1, 8, 16)
WAYS: dict[str, dict[str, Any]] = {"next-token": {"policy": "next-token"}, "exact": {"policy": "exact"}}
PLACES = 160  # slots of the server (rows and queue) with its defaults


class Server:
    """`multitoken serve demo` in a process of its own."""

    def __init__(self, threads: int) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "multitoken.cli", "serve", "demo", "--port", str(port)]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
        end = time.monotonic() + 120
        while True:
            try:
                httpx2.get(f"{self.url}/health").raise_for_status()
                return
            except httpx2.HTTPError:
                if time.monotonic() > end or self.process.poll() is not None:
                    raise SystemExit("the server does not start") from None
                time.sleep(0.2)

    def megabytes(self) -> float:
        return psutil.Process(self.process.pid).memory_info().rss / 1e6

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(60)


def body_of(prompt: str, way: str, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": prompt}]
    return {"model": "demo", "messages": messages, "max_tokens": NEW, "mtp": WAYS[way], **more}


async def stream(client: Any, body: dict[str, Any]) -> tuple[float, int]:
    """(seconds to the first event, tokens)."""
    begun, first, tokens = time.perf_counter(), 0.0, 0
    options = {"stream": True, "stream_options": {"include_usage": True}}
    async with client.stream("POST", "/v1/chat/completions", json=body | options) as response:
        async for line in response.aiter_lines():
            if line and not first:
                first = time.perf_counter() - begun
            if line.startswith("data: {") and '"choices":[]' in line:
                tokens = json.loads(line[6:])["usage"]["completion_tokens"]
    return first, tokens


async def at_once(client: Any, prompts: list[str], way: str, streams: int) -> float:
    """Tokens a second of `streams` streams, each of which sends one request after another until no prompt is left."""
    left, tokens = list(prompts), 0

    async def one() -> None:
        nonlocal tokens
        while left:
            _, written = await stream(client, body_of(left.pop(), way))
            tokens += written  # on a line of its own: `+= await` would read the sum before it waits

    begun = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(streams)))
    return tokens / (time.perf_counter() - begun)


def bare(model: Model, prompts: list[str], streams: int) -> float:
    """Tokens a second of the engine alone, under Exact."""
    engine = model.decoder.engine(adaptive=True, max_rows=streams)
    begun = time.perf_counter()
    for prompt in reversed(prompts):
        engine.add(model.decoder.request(model.encode(prompt), policy=mt.Exact(), max_new_tokens=NEW))
    tokens = sum(len(chunk.token_ids) for chunk in engine.run())
    return tokens / (time.perf_counter() - begun)


def summary(values: list[float]) -> dict[str, float]:
    low, middle, high = statistics.quantiles(values, n=4)
    return {"median": middle, "low": low, "high": high}


async def first_tokens(client: Any, prompts: list[str]) -> dict[str, float]:
    """Seconds from the request to the first event, on an idle server."""
    found = sorted([(await stream(client, body_of(prompt, "exact")))[0] for prompt in prompts])
    return {"median": statistics.median(found), "p95": found[int(0.95 * len(found))]}


async def pairs(client: Any, model: Model, number: int, streams: int) -> dict[str, Any]:
    each = max(4, 2 * streams)
    questions = [e.prompt for e in examples("word-problems", "test", each * (number + 1))]
    found: dict[str, list[float]] = {"next-token": [], "exact": [], "engine": []}
    for i in range(number + 1):
        prompts = questions[i * each : (i + 1) * each]
        speeds = {way: await at_once(client, prompts, way, streams) for way in WAYS}
        speeds["engine"] = bare(model, prompts, streams)
        if i:  # the first is a warm-up
            for way, speed in speeds.items():
                found[way].append(speed)
    ratios = [a / b for a, b in zip(found["exact"], found["next-token"], strict=True)]
    shares = [a / b for a, b in zip(found["exact"], found["engine"], strict=True)]
    speeds = {way: statistics.median(values) for way, values in found.items()}
    return {"streams": streams, "tokens_per_second": speeds, "gain": summary(ratios), "of_engine": summary(shares)}


async def flood(client: Any, model: Model, number: int) -> dict[str, Any]:
    """Sends requests from more clients than the server has slots for."""
    questions = [e.prompt for e in examples("word-problems", "test", min(number, 200))]
    right: list[list[int]] = [[] for _ in questions]
    ids = [model.encode(question) for question in questions]
    for chunk in model.decoder.decode(ids, policy=mt.NextToken(), max_new_tokens=NEW):
        right[chunk.row] += chunk.token_ids
    left = list(range(number))
    count = {"answers": 0, "wrong": 0, "failed": 0, "busy": 0}

    async def one() -> None:
        while left:
            i = left.pop()
            way = "next-token" if i % 8 == 0 else "exact"
            while True:
                body = body_of(questions[i % len(questions)], way, return_token_ids=True)
                response = await client.post("/v1/chat/completions", json=body)
                if response.status_code != 429:
                    break
                count["busy"] += 1
                await asyncio.sleep(float(response.headers["Retry-After"]))
            if response.status_code != 200:
                count["failed"] += 1
                continue
            count["answers"] += 1
            count["wrong"] += response.json()["choices"][0]["token_ids"] != right[i % len(questions)]

    begun = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(PLACES + 40)))
    return count | {"seconds": time.perf_counter() - begun}


async def measure(server: Server, options: argparse.Namespace) -> dict[str, Any]:
    model = mt.load(checkpoint("gated"))
    limits = httpx2.Limits(max_connections=None)
    async with httpx2.AsyncClient(base_url=server.url, timeout=600, limits=limits) as client:
        questions = [e.prompt for e in examples("word-problems", "test", 45)]
        await first_tokens(client, questions[:5])
        found: dict[str, Any] = {"first_token": await first_tokens(client, questions[5:])}
        print(f"first token {found['first_token']}", flush=True)
        found["load"] = []
        for streams in STREAMS:
            found["load"].append(await pairs(client, model, options.pairs, streams))
            print(found["load"][-1], flush=True)
        if not options.requests:
            return found
        quarter = options.requests // 4
        found["flood"] = [await flood(client, model, quarter)]  # a first part, after which memory should not grow
        before = server.megabytes()
        found["flood"].append(await flood(client, model, options.requests - quarter))
        found["megabytes"] = {"before": before, "after": server.megabytes()}
        print(found["flood"], found["megabytes"], flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--requests", type=int, default=2000, help="number of requests of the flood; 0: no flood")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    server = Server(options.threads)
    try:
        found = asyncio.run(measure(server, options))
    finally:
        server.stop()
    versions = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }
    print(
        json.dumps({"threads": options.threads, "cores": len(os.sched_getaffinity(0)), "versions": versions, **found})
    )


if __name__ == "__main__":
    main()
