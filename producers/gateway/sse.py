"""Server-sent events, framed as OpenAI's API frames them (WHATWG HTML, section 9.2)."""

from __future__ import annotations

from typing import Any

import msgspec

MEDIA_TYPE = "text/event-stream"
DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": waiting\n\n"
"""A comment: readers pass it over, and proxies see that the connection lives."""


def event(document: dict[str, Any], number: int | None = None) -> bytes:
    """One event; ``number`` is its id, which a browser sends back as ``Last-Event-ID``."""
    head = b"" if number is None else b"id: %d\n" % number
    return head + b"data: " + msgspec.json.encode(document) + b"\n\n"
