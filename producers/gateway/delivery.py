"""Waits until Kafka has a record, no longer than a caller should."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from typing import Any

from infra.contracts.errors import FeedloomError
from producers.gateway.errors import unavailable

WRITTEN_S = 5.0


async def acknowledged(written: Future[Any]) -> None:
    """Return once the broker has it. Raises ApiError 503: it does not take it in time."""
    try:
        await asyncio.wait_for(asyncio.wrap_future(written), WRITTEN_S)
    except (TimeoutError, FeedloomError) as error:
        raise unavailable("Kafka does not take records", code="broker_gone") from error
