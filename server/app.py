"""The ASGI application: routes and layers. Any ASGI server can run it; `mdinfer serve` uses uvicorn."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from mdinfer import __version__
from mdinfer.errors import MdinferError
from mdinfer.server import skills
from mdinfer.server.auth import OPEN_PATHS, Authentication
from mdinfer.server.chat import chat_completions
from mdinfer.server.errors import ApiError, ClientGone, bad_request, json_response
from mdinfer.server.failure import ErrorResponse, handle_error
from mdinfer.server.openapi import openapi
from mdinfer.server.protocols import EngineLoader, ServingEngine
from mdinfer.server.request_log import RequestLog
from mdinfer.server.service import Service, service_of
from mdinfer.server.settings import Settings


def create_app(engine: ServingEngine | EngineLoader, settings: Settings | None = None) -> Starlette:
    """An app over a loaded engine, or over a function that loads one.

    With a function the app answers at once, loads in the background, is ready (`/ready`) when that is done,
    and closes the engine when it stops. A loaded engine stays the caller's. `app.state.service` is its state.
    """
    settings = settings or Settings()
    service = Service(engine, settings)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        service.start()
        try:
            yield
        finally:
            service.close()

    app = Starlette(
        routes=[
            Route("/v1/chat/completions", chat_completions, methods=["POST"]),
            Route("/v1/models", models, methods=["GET"]),
            Route("/v1/models/{model:path}", model, methods=["GET"]),
            Route("/v1/query", skills.query, methods=["POST"]),
            Route("/v1/caption", skills.caption, methods=["POST"]),
            Route("/v1/detect", skills.detect, methods=["POST"]),
            Route("/v1/point", skills.point, methods=["POST"]),
            Route("/health", health, methods=["GET"]),
            Route("/ready", ready, methods=["GET"]),
            Route("/metrics", metrics, methods=["GET"]),
            Route("/version", version, methods=["GET"]),
            Route("/openapi.json", openapi_document, methods=["GET"]),
        ],
        middleware=_layers(service),
        exception_handlers=dict.fromkeys((ApiError, ClientGone, MdinferError, HTTPException), handle_error),
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    app.state.service = service
    return app


class Cors(CORSMiddleware):
    def preflight_response(self, request_headers: Headers) -> Response:
        """Starlette's, with a refusal in the envelope of all errors."""
        response = super().preflight_response(request_headers)
        if response.status_code == 200:
            return response
        refusal = ErrorResponse(bad_request(f"{bytes(response.body).decode().lower()}: see --cors-origin"))
        refusal.headers.update({k: v for k, v in response.headers.items() if not k.startswith("content-")})
        return refusal


def _layers(service: Service) -> list[Middleware]:
    """From the outermost inwards: CORS lies outside of authentication, so that pages can read a 401."""
    settings = service.settings
    open_paths = OPEN_PATHS | {"/metrics"} if settings.loopback else OPEN_PATHS
    cors = Middleware(
        Cors,
        allow_origins=settings.cors_origins,
        allow_methods=["GET", "POST"],
        allow_headers=["*"],
        expose_headers=["x-request-id", "retry-after"],
    )
    return [
        Middleware(RequestLog, metrics=service.metrics),
        *([cors] if settings.cors_origins else []),
        Middleware(Authentication, api_keys=settings.api_keys, open_paths=open_paths),
    ]


async def models(http: Request) -> Response:
    service = service_of(http)
    return json_response({"object": "list", "data": [_model(service, name) for name in service.settings.model_names]})


async def model(http: Request) -> Response:
    service = service_of(http)
    return json_response(_model(service, service.check_model(http.path_params["model"])))


def _model(service: Service, name: str) -> dict[str, object]:
    return {"id": name, "object": "model", "created": service.created, "owned_by": "moondream"}


async def health(http: Request) -> Response:
    """Whether restarting the process would help: no while it loads or drains."""
    service = service_of(http)
    if service.state in ("failed", "dead"):
        return ErrorResponse(service.unavailable())
    return json_response({"status": "ok"})


async def ready(http: Request) -> Response:
    """Whether to send requests here."""
    service = service_of(http)
    if service.state != "ready":
        return ErrorResponse(service.unavailable())
    return json_response({"status": "ready"})


async def metrics(http: Request) -> Response:
    text, content_type = service_of(http).metrics.expose(http.headers.get("accept", ""))
    return Response(text, headers={"content-type": content_type})


async def version(_: Request) -> Response:
    return json_response({"version": __version__})


async def openapi_document(http: Request) -> Response:
    return json_response(openapi(service_of(http).settings))
