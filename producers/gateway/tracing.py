"""A server span and a duration for each call that does something, and the streams that are open.

Names are those of OpenTelemetry's HTTP conventions.

Spans are named by route, so that no id and nothing of a caller's gets into a name or a metric.
"""

from __future__ import annotations

import time

from opentelemetry import trace
from opentelemetry.trace import SpanKind, StatusCode
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from observability.instruments import ERROR_TYPE, GATEWAY_STREAMS, HTTP_REQUEST_DURATION
from observability.tracing import span

_TRACER = trace.get_tracer("feedloom.producers.gateway")
_STREAM = b"text/event-stream"
_METHODS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"})


class Traced:
    """ASGI middleware around everything else. A stream's span ends with its last event."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or _is_noise(scope):
            await self._app(scope, receive, send)
            return
        method = scope["method"] if scope["method"] in _METHODS else "_OTHER"
        headers = [(name.decode("latin-1"), value) for name, value in scope["headers"]]
        started, status, streams = time.perf_counter(), 500, False
        failure: str | None = None

        async def noted(message: Message) -> None:
            nonlocal status, streams
            if message["type"] == "http.response.start":
                status = message["status"]
                if _is_stream(message):
                    streams = True
                    GATEWAY_STREAMS.add(1)
            await send(message)

        with span(_TRACER, method, kind=SpanKind.SERVER, parent=headers) as serving:
            try:
                await self._app(scope, receive, noted)
            except BaseException as error:
                failure = type(error).__qualname__
                raise
            finally:
                attributes: dict[str, str | int] = {
                    "http.request.method": method,
                    "http.response.status_code": status,
                    "url.scheme": scope["scheme"],
                }
                route = _route_of(scope)
                if route is not None:
                    attributes["http.route"] = route
                    serving.update_name(f"{method} {route}")
                if failure is not None or status >= 500:
                    attributes[ERROR_TYPE] = failure or str(status)
                if streams:
                    GATEWAY_STREAMS.add(-1)
                serving.set_attributes(attributes | {"url.path": scope["path"]})
                if status >= 500:
                    serving.set_status(StatusCode.ERROR)
                HTTP_REQUEST_DURATION.record(time.perf_counter() - started, attributes)


def _is_noise(scope: Scope) -> bool:
    """What a probe or an open console asks every few seconds would bury everything else."""
    path: str = scope["path"]
    return scope["method"] == "GET" and path.startswith(("/console", "/healthz", "/readyz"))


def _route_of(scope: Scope) -> str | None:
    """``None``: no route is at this path."""
    route: BaseRoute | None = scope.get("route")
    return getattr(route, "path", None)


def _is_stream(start: Message) -> bool:
    return any(
        name.lower() == b"content-type" and value.startswith(_STREAM)
        for name, value in start.get("headers", ())
    )
