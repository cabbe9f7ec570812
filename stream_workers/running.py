"""Which requests run, and why one must end before its answer does: cancelled, or too late.

Knows no engine and no records. A cancellation may come before its request, so the newest ones are
remembered.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from infra.contracts.events.generation import (
    FinishReason,
    GenerationCancellation,
    GenerationRequest,
)

T = TypeVar("T")


@dataclass
class Running:
    """``stop``: why it must end. Only the wait for the engine is cut short, never a send."""

    request: GenerationRequest
    stop: FinishReason | None = None
    _waiting: asyncio.Task[object] | None = None
    _cut: bool = False

    def interrupt(self, reason: FinishReason) -> None:
        """End the generation now, or before its next wait."""
        if self.stop is None:
            self.stop = reason
        if self._waiting is not None and not self._cut:
            self._cut = True
            self._waiting.cancel()

    def reason(self) -> FinishReason | None:
        """``stop``, as it may have become during a wait."""
        return self.stop

    async def next(self, stream: AsyncGenerator[T, None]) -> T | FinishReason | None:
        """The next of ``stream``, ``None`` at its end, or why there is none."""
        reason = self.reason()
        if reason is not None:
            return reason
        task = self._waiting = asyncio.current_task()
        assert task is not None
        try:
            return await anext(stream)
        except StopAsyncIteration:
            return None
        except asyncio.CancelledError:
            # Ours, unless somebody else cancelled the task as well.
            if not self._cut or task.uncancel() > 0:
                raise
            return self.reason()
        finally:
            self._waiting = None


class RunningRequests:
    """Many at once in one event loop. ``remembered``: how many cancellations are."""

    def __init__(self, remembered: int) -> None:
        self._remembered = remembered
        self._running: dict[int, Running] = {}
        self._ids: dict[str, set[int]] = {}
        self._number = 0
        self._cancellations: OrderedDict[str, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._running)

    @contextmanager
    def enter(self, request: GenerationRequest, left_s: float | None) -> Iterator[Running]:
        """Runs until the block ends; interrupted when it is cancelled, and after ``left_s``."""
        number = self._number = self._number + 1
        running = self._running[number] = Running(request)
        if self._is_cancelled(request):
            running.stop = "cancelled"
        timer = None
        if left_s is not None:
            loop = asyncio.get_running_loop()
            timer = loop.call_later(left_s, running.interrupt, "deadline_exceeded")
        self._ids.setdefault(request.request_id, set()).add(number)
        try:
            yield running
        finally:
            if timer is not None:
                timer.cancel()
            del self._running[number]
            ids = self._ids[request.request_id]
            ids.discard(number)
            if not ids:
                del self._ids[request.request_id]

    def cancel(self, event: GenerationCancellation) -> None:
        """Stop the request if it runs, or as soon as it comes, if it was created before."""
        self._cancellations[event.request_id] = event.created_at_ms
        self._cancellations.move_to_end(event.request_id)
        if len(self._cancellations) > self._remembered:
            self._cancellations.popitem(last=False)
        for number in self._ids.get(event.request_id, ()):
            running = self._running[number]
            if self._is_cancelled(running.request):
                running.interrupt("cancelled")

    def _is_cancelled(self, request: GenerationRequest) -> bool:
        at = self._cancellations.get(request.request_id)
        return at is not None and at >= request.created_at_ms
