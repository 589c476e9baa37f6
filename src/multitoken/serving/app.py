"""The HTTP app: its routes, and its errors in the format that OpenAI clients expect."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import resources
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response

import multitoken
from multitoken.decoding.policies import as_options
from multitoken.models.model import Model

from .errors import ApiError
from .guard import Guard
from .options import ServeOptions
from .protocol import ChatBody, CompletionBody
from .service import Service
from .wrong_fields import wrong_body

_PAGE_HEADERS = {
    # Style and script of the page are inline, and it sends requests to this server only.
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def create_app(model: Model, options: ServeOptions) -> FastAPI:
    """Build the app, with its `Service` in `app.state.service`. From here on only the app may use the model."""
    service = Service(model, options)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        await service.drain()

    # FastAPI's own documentation pages would load their scripts from other sites.
    app = FastAPI(title="multitoken", version=multitoken.__version__, docs_url=None, redoc_url=None, lifespan=lifespan)
    app.state.service = service
    app.add_middleware(Guard, options=options, requests=service.metrics.requests)
    if options.origins:  # outside the guard: without CORS headers a page cannot read why it is refused
        app.add_middleware(
            CORSMiddleware, allow_origins=options.origins, allow_methods=["GET", "POST"], allow_headers=["*"]
        )
    _add_routes(app, service)
    _add_handlers(app)
    return app


def _add_routes(app: FastAPI, service: Service) -> None:
    page = resources.files("multitoken.serving").joinpath("page.html").read_text(encoding="utf-8")

    @app.post("/v1/completions")
    async def completions(body: CompletionBody, request: Request) -> Response:
        return await service.answer(body, request.receive)

    @app.post("/v1/chat/completions")
    async def chat_completions(body: ChatBody, request: Request) -> Response:
        return await service.answer(body, request.receive)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_card(service)]}

    @app.get("/v1/models/{name:path}")
    async def model_named(name: str) -> dict[str, Any]:
        if name != service.options.name:
            message = f"there is no model {name!r}; this server serves {service.options.name!r}"
            raise ApiError(404, message, param="model", code="model_not_found")
        return _card(service)

    @app.get("/health")
    async def health() -> Response:
        state = service.health()
        return JSONResponse(state, 200 if state["status"] == "ok" else 503)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        return PlainTextResponse(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/", include_in_schema=False)
    async def playground() -> Response:
        return HTMLResponse(page, headers=_PAGE_HEADERS)


def _card(service: Service) -> dict[str, Any]:
    return {
        "id": service.options.name,
        "object": "model",
        "created": service.created,
        "owned_by": "multitoken",
        "max_model_len": service.model.decoder.max_positions,
        "mtp": {
            "k": service.model.decoder.trained_k,
            "chat": service.model.tokenizer.chat_template is not None,
            "max_tokens": service.options.max_tokens,
            "default": as_options(service.preparer.default),
        },
    }


def _add_handlers(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def api_error(request: Request, error: ApiError) -> Response:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def validation_error(request: Request, error: RequestValidationError) -> Response:
        return wrong_body(error.errors()).response()

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        return ApiError(error.status_code, str(error.detail), headers=dict(error.headers or {})).response()

    @app.exception_handler(Exception)
    async def surprise(request: Request, error: Exception) -> Response:
        return ApiError(500, f"unexpected {type(error).__name__}: {error}").response()
