"""A server in a thread of the test's process, on a free local port."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import openai

from multitoken.models.model import Model
from multitoken.serving.options import ServeOptions
from multitoken.serving.run import Server, listen


class Running:
    def __init__(self, model: Model, **options: Any) -> None:
        self.model = model
        self.options = ServeOptions(**({"name": "tiny", "port": 0, "grace": 5.0} | options))
        self.socket = listen(self.options)
        self.server = Server(model, self.options)
        self.thread = threading.Thread(target=self.server.run, args=([self.socket],), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.socket.getsockname()[1]}"

    @property
    def service(self):
        return self.server.service

    def client(self, **options: Any) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", timeout=60, max_retries=0, **options)

    def idle(self) -> bool:
        """Whether no row is being decoded and the engine holds no work."""
        return self.service.health()["rows"] == 0 and not self.service.driver._engine.busy


@contextmanager
def running(model: Model, **options: Any) -> Iterator[Running]:
    server = Running(model, **options)
    server.thread.start()
    until(lambda: server.server.started or not server.thread.is_alive(), "the server is up")
    try:
        yield server
    finally:
        server.server.should_exit = True
        server.thread.join(120)
        assert not server.thread.is_alive(), "the server ends"


def until(met: Any, what: str, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < end, f"waited in vain until {what}"
        time.sleep(0.01)
