"""ASGI middleware in front of the API: it checks who may call, limits the size of a body and counts the responses."""

import asyncio
import secrets

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import ApiError
from .metrics import Counter
from .options import ServeOptions

_BODY_SECONDS = 30.0  # time that a client has to send its body
_PATIENCE = 16  # a body that is too large is read and discarded, up to this many times the limit
_OPEN = ("/", "/health")  # need no key: the page, which asks for one, and the health check
_COUNTED = ("/v1/completions", "/v1/chat/completions", "/v1/models")


class Guard:
    """Wraps the app."""

    def __init__(self, app: ASGIApp, options: ServeOptions, requests: Counter) -> None:
        self._app = app
        self._options = options
        self._requests = requests
        self._hosts = {"localhost", "127.0.0.1", "[::1]", options.host, f"[{options.host}]"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start" and scope["path"] in _COUNTED:
                self._requests.add(1, scope["path"].removeprefix("/v1/"), str(message["status"]))
            await send(message)

        try:
            self._check(scope, Headers(scope=scope))
            received = await self._body(receive, Headers(scope=scope)) if scope["method"] == "POST" else None
        except ApiError as error:
            await error.response()(scope, receive, counted)
            return
        await self._app(scope, _again(received, receive) if received is not None else receive, counted)

    def _check(self, scope: Scope, headers: Headers) -> None:
        host = headers.get("host", "").lower()
        name = host[: host.rfind("]") + 1] if host.startswith("[") else host.split(":")[0]
        if self._options.is_local and name not in self._hosts:
            # DNS rebinding: a page of another site whose host name was made to resolve to this machine.
            raise ApiError(
                403, f"this server answers calls to localhost only, not to {name!r}", code="host_not_allowed"
            )
        key = self._options.api_key
        if key is None or scope["path"] in _OPEN or scope["method"] == "OPTIONS":
            return
        given = headers.get("authorization", "")
        if not secrets.compare_digest(given.encode(), f"Bearer {key}".encode()):
            raise ApiError(
                401,
                "the API key is missing or wrong; send it as 'Authorization: Bearer KEY'",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )

    async def _body(self, receive: Receive, headers: Headers) -> bytes:
        """Read the whole body. One that is too large is still read to its end, up to `_PATIENCE` times the limit,
        because its sender does not read the response before that."""
        most, total, more = self._options.max_body, 0, True
        declared = headers.get("content-length", "0")
        if declared.isdecimal() and int(declared) > _PATIENCE * most:
            raise _too_large(most)
        body = bytearray()
        try:
            async with asyncio.timeout(_BODY_SECONDS):
                while more and total <= _PATIENCE * most:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ApiError(400, "the body is incomplete")
                    part, more = message.get("body", b""), message.get("more_body", False)
                    total += len(part)
                    if total <= most:
                        body += part
        except TimeoutError:
            raise ApiError(408, f"the body did not arrive within {_BODY_SECONDS:g} seconds", headers=_CLOSE) from None
        if total > most:
            raise _too_large(most)
        return bytes(body)


_CLOSE = {"Connection": "close"}


def _too_large(most: int) -> ApiError:
    return ApiError(413, f"the body is larger than {most:,} bytes", code="body_too_large", headers=_CLOSE)


def _again(body: bytes, receive: Receive) -> Receive:
    """A `receive` that first returns the whole body, and then what the original `receive` returns."""
    is_given = False

    async def first_the_body() -> Message:
        nonlocal is_given
        if is_given:
            return await receive()
        is_given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return first_the_body
