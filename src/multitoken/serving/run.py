"""`multitoken serve`: runs the app in uvicorn, from the first line on the terminal to a clean shutdown."""

import asyncio
import os
import socket

import torch
import uvicorn
from rich.console import Console

from multitoken.errors import UsageError
from multitoken.models.model import Model

from .app import create_app
from .options import ServeOptions
from .service import Service

_CLOSING = 10  # seconds for connections to close after the grace period


class Server(uvicorn.Server):
    """Gives running requests a grace period when it shuts down. A second Ctrl-C ends the server at once."""

    def __init__(self, model: Model, options: ServeOptions) -> None:
        app = create_app(model, options)
        self.service: Service = app.state.service
        super().__init__(
            uvicorn.Config(
                app,
                log_level="warning",
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=int(options.grace) + _CLOSING,
                lifespan="on",
            )
        )

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        draining = asyncio.create_task(self.service.drain())
        await super().shutdown(sockets)
        await draining


def leave_a_core(model: Model) -> None:
    """On a CPU, let the model compute on all cores but one. HTTP and clients need the last one: if the model used it
    too, every parallel region would wait for a core that is busy with them (docs/serving.md). `OMP_NUM_THREADS`
    overrides this."""
    if model.hf.device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() - 1))


def serve(model: Model, options: ServeOptions, console: Console) -> None:
    """Serve until a signal ends the server. Raises `UsageError` if it cannot listen on the address."""
    listening = listen(options)
    leave_a_core(model)
    host, port = listening.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    server = Server(model, options)
    console.print(
        f"Serving {options.name} ({server.service.preparer.default})\n"
        f"  playground  http://{shown}:{port}/\n"
        f"  API         http://{shown}:{port}/v1\n"
        "Press Ctrl-C to stop.",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    if not options.is_local and options.api_key is None:
        console.print(
            "Anyone who can reach this address can use the server. Set a key with --api-key KEY.", style="yellow"
        )
    server.run([listening])


def listen(options: ServeOptions) -> socket.socket:
    """Open the server's socket first, so that an address in use is an error before anything else starts."""
    try:
        family, *_, address = socket.getaddrinfo(options.host, options.port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=512)
    except OSError as error:
        raise UsageError(
            f"cannot listen on {options.host} port {options.port}: {error.strerror}; choose another --host or --port"
        ) from error
