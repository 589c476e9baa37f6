"""Responses from a server that runs the original model: any OpenAI-compatible server, with many requests in flight.

A server is checked before it is used: what it writes greedily must be what the original model would write here.
"""

import json
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from multitoken.errors import DataError, UsageError
from multitoken.models.prompts import tokenize_continuation

from .encoding import fingerprint
from .responses import Written, longest_response

IN_FLIGHT = 256
_TRIES, _FIRST_PAUSE = 6, 0.5  # seconds, doubled after each try: 15.5 seconds in all
_TIMEOUT = 600  # seconds: a long response on a busy server
_CHECKED, _CHECKED_TOKENS = 8, 32
_CLOSE = 0.5  # in logits: a server's bfloat16 breaks near-ties differently


class _Refused(Exception):
    """The server answered, and refused the request."""


@dataclass
class ResponseServer:
    """A server at `url` ("http://host:8000/v1", followed by "#NAME" if it serves several models).

    max_positions: the model's limit. Raises `UsageError` for a server that cannot be used, and `DataError` for one that
    stops answering while it writes. The caller keeps what was written until then.
    """

    url: str
    tokenizer: PreTrainedTokenizerBase
    eos_ids: Collection[int]
    max_new_tokens: int
    temperature: float
    seed: int
    max_positions: int | None = None
    model: str = ""
    _extra: dict[str, Any] = field(default_factory=lambda: {"return_token_ids": True})

    def __post_init__(self) -> None:
        self.url, _, self.model = self.url.partition("#")
        self.url = self.url.rstrip("/")
        if not self.url.startswith(("http://", "https://")):
            raise UsageError(f"responses_from is {self.url!r}; expected a URL such as http://localhost:8000/v1")
        try:
            served = [str(model["id"]) for model in self._send("models")["data"]]
        except (_Refused, OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(
                f"responses_from: no OpenAI-compatible server answers at {self.url}: {error}; expected one that lists its models "
                f"at {self.url}/models"
            ) from error
        if not self.model and len(served) != 1:
            raise UsageError(f"{self.url} serves {', '.join(served) or 'no model'}; name one: {self.url}#NAME")
        self.model = self.model or served[0]
        if self.model not in served:
            raise UsageError(f"{self.url} does not serve {self.model!r}; it serves {', '.join(served)}")

    def check(self, original: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> None:
        """Have the server continue a few prompts greedily, and read the result with the original. Raises `UsageError` where a
        different model or tokenizer wrote it."""
        for prompt in prompts[:_CHECKED]:
            try:
                ids, _ = self._ask(list(prompt), sampled=False, most=_CHECKED_TOKENS)
            except _Refused as error:
                raise UsageError(f"{self.url} refuses a prompt of token ids: {error}") from error
            except (OSError, ValueError) as error:
                raise UsageError(f"{self.url} does not answer a prompt of token ids: {error}") from error
            place = _first_strange(original, prompt, ids)
            if place is not None:
                said = self.tokenizer.decode(ids[: place + 1])
                raise UsageError(
                    f"{self.url} serves a different model from the one that is adapted: after the prompt "
                    f"{self.tokenizer.decode(list(prompt[-40:]))!r} it writes {said!r}, whose last token the original would not choose; "
                    "serve the original model, with its own tokenizer"
                )

    def write(self, prompts: list[list[int]], sampled: Sequence[bool]) -> Iterator[tuple[int, Written]]:
        """(index of the prompt, its response), in the order in which they are finished."""
        stop = threading.Event()
        waiting = iter(enumerate(zip(prompts, sampled, strict=True)))
        flying: dict[Future[Written], int] = {}
        with ThreadPoolExecutor(IN_FLIGHT) as pool:
            try:
                while True:
                    while len(flying) < IN_FLIGHT and (following := next(waiting, None)) is not None:
                        place, (prompt, is_sampled) = following
                        flying[pool.submit(self._patiently, prompt, is_sampled, stop)] = place
                    if not flying:
                        return
                    done, _ = wait(flying, return_when=FIRST_COMPLETED)
                    for future in done:
                        yield flying.pop(future), future.result()
            finally:
                stop.set()
                for future in flying:
                    future.cancel()

    def _patiently(self, prompt: list[int], sampled: bool, stop: threading.Event) -> Written:
        """Like `_ask`, with retries while the server is busy or briefly unavailable."""
        pause = _FIRST_PAUSE
        most = longest_response(len(prompt), self.max_new_tokens, self.max_positions)
        for left in range(_TRIES - 1, -1, -1):
            try:
                return self._ask(prompt, sampled=sampled, most=most)
            except _Refused as error:
                raise DataError(f"{self.url} refuses a prompt of {len(prompt)} tokens: {error}") from error
            except (OSError, ValueError) as error:
                if not left or stop.wait(pause):
                    raise DataError(
                        f"{self.url} does not answer: {error}. What it has written is kept; run again with --resume when it is back"
                    ) from error
                pause *= 2
        raise AssertionError("the last try returns or raises")

    def _ask(self, prompt: list[int], *, sampled: bool, most: int) -> Written:
        request = {
            "model": self.model,
            "prompt": prompt,
            "max_tokens": most,
            "temperature": self.temperature if sampled else 0.0,
            # Derived from the prompt, so that a resumed run asks for the same.
            "seed": (self.seed + int(fingerprint(prompt)[:7], 16)) % 2**31,
        }
        try:
            answer = self._send("completions", request | self._extra)
        except _Refused:
            if not self._extra:
                raise
            answer = self._send("completions", request)  # the server returns no ids: its text is tokenised
            self._extra = {}
        try:
            choice = answer["choices"][0]
        except (LookupError, TypeError) as error:
            raise ValueError(f"its reply holds no choices: {str(answer)[:200]}") from error
        ids = choice.get("token_ids")
        if ids is None:
            ids = tokenize_continuation(str(choice["text"]), self.tokenizer)
        ids = [int(i) for i in ids]
        ended = choice.get("finish_reason") == "stop"
        end = next((place for place, i in enumerate(ids) if i in self.eos_ids), None)
        if end is not None:
            return ids[: end + 1], True
        if ended:  # by a token that the answer leaves out
            own = self.tokenizer.eos_token_id
            ids.append(own if isinstance(own, int) and own in self.eos_ids else min(self.eos_ids))
        return ids, ended

    def _send(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """Raises `_Refused` for a failure that a retry would not change, `OSError` and `ValueError` for all others."""
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get("OPENAI_API_KEY"):
            headers["Authorization"] = f"Bearer {key}"
        data = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(f"{self.url}/{path}", data=data, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT if body else 30) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            with error:
                said = error.read(2000).decode(errors="replace")
            if error.code == 429 or error.code >= 500:
                raise OSError(f"{error.code}: {said}") from error
            raise _Refused(f"{error.code}: {said}") from error


@torch.inference_mode()
def _first_strange(model: PreTrainedModel, prompt: Sequence[int], ids: Sequence[int]) -> int | None:
    """The index of the first token that the model would not choose greedily, near-ties excepted."""
    if not ids or max(ids) >= model.config.get_text_config().vocab_size:
        return 0 if ids else None
    tokens = torch.tensor([[*prompt, *ids]], device=model.device)
    logits = model(input_ids=tokens, use_cache=False).logits[0, len(prompt) - 1 : -1].float()
    chosen = logits.gather(1, tokens[0, len(prompt) :, None])[:, 0]
    strange = (logits.max(1).values - chosen > _CLOSE).nonzero()[:, 0].tolist()
    return strange[0] if strange else None
