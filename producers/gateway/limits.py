"""What a body may be, before anything is made of it."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from producers.gateway.errors import ApiError, invalid


def too_large(limit: int) -> ApiError:
    """413."""
    return ApiError(413, f"the body is larger than {limit} bytes", code="body_too_large")


class BodyTooLarge(Exception):
    """Raised into whoever reads the body, once it is longer than may be."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self.limit = limit


class BodyLimit:
    """ASGI middleware: a body is read no further than its limit, whatever its headers say.

    ``uploads``: paths of file uploads, which may be larger.
    """

    def __init__(self, app: ASGIApp, *, limit: int, upload_limit: int, uploads: str) -> None:
        self._app = app
        self._limit = limit
        self._upload_limit = upload_limit
        self._uploads = uploads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = self._upload_limit if scope["path"] == self._uploads else self._limit
        taken = 0

        async def bounded() -> Message:
            nonlocal taken
            message = await receive()
            if message["type"] == "http.request":
                taken += len(message.get("body", b""))
                if taken > limit:
                    raise BodyTooLarge(limit)
            return message

        await self._app(scope, bounded, send)


def parse_json(body: bytes, *, max_depth: int) -> Any:
    """The document of a body. Raises ApiError 400: no JSON, not UTF-8, or nested too deeply."""
    try:
        document = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise invalid(f"the body is not JSON: {error}", code="invalid_json") from None
    except RecursionError:
        raise _too_deep(max_depth) from None
    level, depth = [document], 0
    while level:
        if depth > max_depth:
            raise _too_deep(max_depth)
        depth += 1
        level = [
            child
            for node in level
            if isinstance(node, dict | list)
            for child in (node.values() if isinstance(node, dict) else node)
            if isinstance(child, dict | list)
        ]
    return document


def _too_deep(max_depth: int) -> ApiError:
    return invalid(f"the body's JSON is nested deeper than {max_depth} levels", code="invalid_json")
