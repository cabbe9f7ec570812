"""Between HTTP and the service: who calls, what the body says, and how an answer leaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import aclosing, suppress
from typing import Annotated, Any, TypeVar, cast

from fastapi import Depends, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from infra.contracts.events.generation import GenerationChunk, GenerationResult
from infra.identity.principal import Authenticator, Principal, Unauthenticated
from infra.settings import GatewaySettings
from observability.instruments import GATEWAY_UNAUTHENTICATED, REASON
from producers.gateway import bodies, limits, sse
from producers.gateway.answers import StreamedAnswer
from producers.gateway.bodies import Body
from producers.gateway.errors import ApiError, invalid
from producers.gateway.service import GatewayService
from producers.gateway.token_log import Item

B = TypeVar("B", bound=Body)
T = TypeVar("T")


def service_of(request: Request) -> GatewayService:
    """This replica's service."""
    return cast(GatewayService, request.app.state.service)


def settings_of(request: Request) -> GatewaySettings:
    """This replica's settings."""
    return cast(GatewaySettings, request.app.state.settings)


async def principal_of(request: Request) -> Principal:
    """The caller. Raises Unauthenticated."""
    authenticator = cast(Authenticator, request.app.state.authenticator)
    given = request.headers.get("authorization")
    if given is None:
        return authenticator.anonymous()
    scheme, _, credential = given.partition(" ")
    if scheme.lower() != "bearer" or not credential.strip():
        GATEWAY_UNAUTHENTICATED.add(1, {REASON: "malformed"})
        raise Unauthenticated("send an API key or a token as `Authorization: Bearer ...`")
    return await authenticator.authenticate(credential.strip())


Caller = Annotated[Principal, Depends(principal_of)]
Service = Annotated[GatewayService, Depends(service_of)]
Configured = Annotated[GatewaySettings, Depends(settings_of)]


async def body_of(request: Request, kind: type[B]) -> B:
    """The body, as one of ``producers.gateway.bodies``. Raises ApiError."""
    content_type = request.headers.get("content-type", "application/json").partition(";")[0]
    if content_type.strip().lower() != "application/json":
        raise ApiError(415, "the body must be application/json", code="unsupported_media_type")
    document = limits.parse_json(
        await request.body(), max_depth=settings_of(request).max_json_depth
    )
    return bodies.parse(kind, document)


def starting_after(request: Request) -> int | None:
    """The number of the last event that the caller has, from the query or ``Last-Event-ID``."""
    named = request.query_params.get("starting_after", request.headers.get("last-event-id"))
    if named is None:
        return None
    if not named.isascii() or not named.isdecimal() or len(named) > 12:
        raise invalid("starting_after is the number of an event", param="starting_after")
    return int(named)


def event_ids(request: Request) -> bool:
    """Whether events carry their numbers: ``Feedloom-Event-Ids: off`` leaves them out, for clients
    that read nothing but lines of data.
    """
    wanted = request.headers.get("feedloom-event-ids", "on")
    if wanted not in ("on", "off"):
        raise invalid("Feedloom-Event-Ids is on or off", param="Feedloom-Event-Ids")
    return wanted == "on"


async def unless_gone(request: Request, work: Awaitable[T]) -> T | None:
    """What ``work`` comes to; ``None``, and it is cancelled, if the caller hangs up before."""
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        return await working if working.done() else None
    finally:
        for task in (working, watching):
            task.cancel()
            with suppress(asyncio.CancelledError):
                await asyncio.wait({task})


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


GONE = Response(status_code=499)
"""Nobody is there to read it."""


class EventStream(StreamingResponse):
    """Closes its generator however it ends, so that what it follows is let go of."""

    def __init__(self, events: AsyncIterator[bytes], headers: dict[str, str]) -> None:
        super().__init__(
            events,
            media_type=sse.MEDIA_TYPE,
            headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no", **headers},
        )
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await cast(Any, self._events).aclose()


async def event_stream(
    request: Request,
    items: AsyncIterator[Item],
    answer: StreamedAnswer,
    *,
    after: int | None,
    numbered: bool,
    patience_s: float,
    headers: dict[str, str],
) -> Response:
    """Stream an answer; ``numbered``: its events carry their numbers, as :func:`event_ids` says.

    A failure before the first event is answered with its status.
    After ``patience_s`` of silence the stream begins all the same, so that the caller's and any
    proxy's time does not run out; from then on a failure is an event.
    """
    events = _events(items, answer, after=after, numbered=numbered)
    first = await unless_gone(request, _first(events, patience_s))
    if first is None:
        await cast(Any, events).aclose()
        return GONE
    return EventStream(_after(first, events), headers)


async def _first(events: AsyncIterator[bytes | None], patience_s: float) -> bytes:
    deadline = asyncio.get_running_loop().time() + patience_s
    async for event in events:
        if event is not None:
            return event
        if asyncio.get_running_loop().time() > deadline:
            return sse.KEEP_ALIVE
    return b""


async def _after(first: bytes, events: AsyncIterator[bytes | None]) -> AsyncIterator[bytes]:
    async with aclosing(cast(Any, events)):
        yield first
        try:
            async for event in events:
                yield sse.KEEP_ALIVE if event is None else event
        except ApiError as error:
            yield sse.event(error.body)


async def _events(
    items: AsyncIterator[Item], answer: StreamedAnswer, *, after: int | None, numbered: bool
) -> AsyncIterator[bytes | None]:
    """The events as they are sent; ``None`` in silence."""
    last = -1 if after is None else after
    async with aclosing(cast(Any, items)):
        async for item in items:
            if item is None:
                yield None
            elif isinstance(item, GenerationChunk):
                number, event = answer.chunk(item)
                if event is not None and number > last:
                    yield sse.event(event, number if numbered else None)
            elif isinstance(item, GenerationResult):
                for number, event in answer.ending(item):
                    if number > last:
                        yield sse.event(event, number if numbered else None)
                yield sse.DONE


def json_response(document: Any, headers: dict[str, str], status: int = 200) -> JSONResponse:
    """A JSON answer."""
    return JSONResponse(document, status_code=status, headers=headers)
