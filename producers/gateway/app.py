"""The ASGI application: routes, limits and errors."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.routing import Match, Route

from infra.contracts.bus import Bus
from infra.identity.principal import (
    AuthenticationUnavailable,
    Authenticator,
    Forbidden,
    Unauthenticated,
)
from infra.settings import GatewaySettings
from producers.gateway import generation_routes, platform_routes
from producers.gateway.batches import routes as batch_routes
from producers.gateway.batches.service import open_batches
from producers.gateway.console import routes as console_routes
from producers.gateway.console.desk import Console
from producers.gateway.description import describe
from producers.gateway.errors import ApiError, unavailable
from producers.gateway.feedback import GatewayFeedback
from producers.gateway.limits import BodyLimit, BodyTooLarge, too_large
from producers.gateway.service import GatewayService
from producers.gateway.tracing import Traced

log = logging.getLogger(__name__)

FILES_PATH = "/v1/files"


def create_app(
    bus: Bus,
    service: GatewayService,
    authenticator: Authenticator,
    settings: GatewaySettings,
    *,
    source: str,
    console: Console | None = None,
) -> FastAPI:
    """One replica over a service, which is closed with it."""
    feedback = GatewayFeedback(bus, source=source)
    desk = console or Console(bus, service, source=source)
    batches = open_batches(bus, service, settings, source=source)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await asyncio.to_thread(desk.open)
        yield
        await asyncio.to_thread(desk.close)
        if batches is not None:
            await asyncio.to_thread(batches.close)
        await service.close()
        feedback.close()

    app = FastAPI(
        title="Feedloom",
        summary="Text generation over Kafka and vLLM, in the shapes of the OpenAI API.",
        version="1",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.state.service = service
    app.state.settings = settings
    app.state.authenticator = authenticator
    app.state.feedback = feedback
    app.state.console = desk
    app.state.batches = batches
    app.include_router(generation_routes.router)
    app.include_router(platform_routes.router)
    app.include_router(console_routes.router)
    if batches is not None:
        app.include_router(batch_routes.router)
    app.add_middleware(
        BodyLimit,
        limit=settings.max_body_bytes,
        upload_limit=settings.max_upload_bytes,
        uploads=FILES_PATH,
    )
    app.add_middleware(Traced)
    for kind, handler in _HANDLERS.items():
        app.add_exception_handler(kind, handler)
    app.openapi = lambda: describe(app)  # type: ignore[method-assign]
    return app


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return JSONResponse(error.body, status_code=error.status, headers=error.headers)


async def _unauthenticated(request: Request, error: Exception) -> Response:
    answer = ApiError(
        401, str(error), code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"}
    )
    return await _api_error(request, answer)


async def _unverifiable(request: Request, error: Exception) -> Response:
    return await _api_error(request, unavailable(str(error), code="authentication_unavailable"))


async def _forbidden(request: Request, error: Exception) -> Response:
    return await _api_error(request, ApiError(403, str(error), code="insufficient_permissions"))


async def _body_too_large(request: Request, error: Exception) -> Response:
    assert isinstance(error, BodyTooLarge)
    answer = too_large(error.limit)
    # What is left of the body is not read: the connection cannot be used again.
    answer.headers["Connection"] = "close"
    return await _api_error(request, answer)


async def _framework(request: Request, error: Exception) -> Response:
    """What Starlette refuses by itself: no such path, no such method."""
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}"
    answer = ApiError(error.status_code, message, headers=error.headers)
    if error.status_code == 405:
        # Starlette names only the methods of the first route of this path.
        answer.headers["Allow"] = ", ".join(_methods(request))
    return await _api_error(request, answer)


def _methods(request: Request) -> list[str]:
    """What may be done at a path, over all of its routes."""
    found: set[str] = set()
    for route in request.app.routes:
        if isinstance(route, Route) and route.matches(request.scope)[0] != Match.NONE:
            found |= route.methods or set()
    return sorted(found)


async def _unforeseen(request: Request, error: Exception) -> Response:
    # Starlette logs the traceback; nothing of the request's content goes with it.
    return await _api_error(request, ApiError(500, "the gateway failed", code="internal_error"))


_HANDLERS = {
    ApiError: _api_error,
    Unauthenticated: _unauthenticated,
    AuthenticationUnavailable: _unverifiable,
    Forbidden: _forbidden,
    BodyTooLarge: _body_too_large,
    HTTPException: _framework,
    Exception: _unforeseen,
}
