"""The asyncio face of the client: the same threads underneath, no thread a request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Self

from infra.contracts.bus import Bus
from infra.contracts.events.generation import GenerationChunk, GenerationRequest, GenerationResult
from producers.client import GenerationClient
from producers.errors import ResultTimeout
from producers.handle import COMPLETE, LATE_CHUNKS_S, GenerationHandle


class AsyncGenerationHandle:
    """One submitted request, awaited in the loop that submitted it."""

    def __init__(self, handle: GenerationHandle) -> None:
        self._handle = handle
        self._changed = asyncio.Event()
        loop = asyncio.get_running_loop()

        def wake() -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._changed.set)

        handle.listen(wake)

    @property
    def request(self) -> GenerationRequest:
        """What was submitted."""
        return self._handle.request

    def cancel(self, reason: str | None = None) -> None:
        """See :meth:`GenerationHandle.cancel`."""
        self._handle.cancel(reason)

    async def stream(self, timeout_s: float = 120.0) -> AsyncIterator[GenerationChunk]:
        """See :meth:`GenerationHandle.stream`."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while True:
            self._changed.clear()
            chunks, ended = self._handle.take()
            for chunk in chunks:
                deadline = loop.time() + timeout_s
                yield chunk
            if ended:
                return
            await self._wait(deadline, timeout_s)

    async def follow(
        self, idle_s: float
    ) -> AsyncIterator[GenerationChunk | GenerationResult | None]:
        """Every chunk in order, then the result; ``None`` after each silence of at most
        ``idle_s``.

        It does not time out: whoever follows decides. Raises as :meth:`stream` otherwise.
        """
        while True:
            self._changed.clear()
            chunks, ended = self._handle.take()
            for chunk in chunks:
                yield chunk
            result = self._handle.outcome()
            # Of an answer that failed, nobody needs the last chunks.
            if result is not None and (ended or result.finish_reason not in COMPLETE):
                yield result
                return
            try:
                # Bounded, since an overdue last chunk ends a stream by time alone. No wait_for: it
                # makes a task of each wait.
                async with asyncio.timeout(min(idle_s, LATE_CHUNKS_S)):
                    await self._changed.wait()
            except TimeoutError:
                yield None

    async def result(self, timeout_s: float = 120.0) -> GenerationResult:
        """See :meth:`GenerationHandle.result`."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        while True:
            self._changed.clear()
            result = self._handle.outcome()
            if result is not None:
                return result
            await self._wait(deadline, timeout_s)

    async def _wait(self, deadline: float, timeout_s: float) -> None:
        left = deadline - asyncio.get_running_loop().time()
        if left <= 0:
            raise ResultTimeout(f"no answer to {self.request.request_id} within {timeout_s:g} s")
        try:
            # Bounded, since an overdue last chunk ends a stream by time alone.
            async with asyncio.timeout(min(left, LATE_CHUNKS_S)):
                await self._changed.wait()
        except TimeoutError:
            return


class AsyncGenerationClient:
    """``async with AsyncGenerationClient(bus, source=...) as client``."""

    def __init__(self, bus: Bus, *, source: str) -> None:
        self._bus = bus
        self._source = source
        self._client: GenerationClient | None = None

    async def submit(self, prompt: str, **options: Any) -> AsyncGenerationHandle:
        """As :meth:`GenerationClient.submit`, with the same keyword arguments."""
        assert self._client is not None, "use `async with`"
        client = self._client
        # A full producer buffer blocks: not in the loop.
        return AsyncGenerationHandle(
            await asyncio.to_thread(lambda: client.submit(prompt, **options))
        )

    async def __aenter__(self) -> Self:
        self._client = await asyncio.to_thread(
            lambda: GenerationClient(self._bus, source=self._source)
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._client is not None
        await asyncio.to_thread(self._client.close)
