"""The options of a server."""

import ipaddress
from dataclasses import dataclass, field

from multitoken.decoding.policies import Policy
from multitoken.errors import UsageError


@dataclass(frozen=True)
class ServeOptions:
    """name: of the model in the API. policy: for requests that name none; None for the model's default. max_rows: rows
    in the batch. queue: rows that may wait in addition. max_tokens: limit for an answer. timeout: seconds for a
    request. grace: seconds for running requests when the server shuts down. max_body: bytes. origins: sites whose pages
    may call the API from a browser (CORS)."""

    name: str
    host: str = "127.0.0.1"
    port: int = 8000
    policy: Policy | None = None
    api_key: str | None = field(default=None, repr=False)
    max_rows: int = 32
    queue: int = 128
    max_tokens: int = 1024
    timeout: float = 600.0
    grace: float = 30.0
    max_body: int = 1 << 20
    origins: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, least in (("max_rows", 1), ("queue", 0), ("max_tokens", 1), ("max_body", 1)):
            if getattr(self, name) < least:
                raise UsageError(f"{name} is {getattr(self, name)}; expected at least {least}")
        for name in ("timeout", "grace"):
            if not getattr(self, name) >= 0:
                raise UsageError(f"{name} is {getattr(self, name)}; expected a number of seconds, 0 or more")
        if not 0 <= self.port < 1 << 16:
            raise UsageError(f"port is {self.port}; expected 0 (any free port) to 65535")
        if self.api_key is not None and not (self.api_key and self.api_key.isascii() and self.api_key.isprintable()):
            raise UsageError(
                "the API key is empty or contains characters that an HTTP header cannot hold; choose another"
            )

    @property
    def most(self) -> int:
        """The most rows that the server holds at a time."""
        return self.max_rows + self.queue

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"
