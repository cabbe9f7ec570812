"""Reads one request's records from the topics, on whichever replica is asked.

The id says on which partition and since when. What is found there is the request's state; a stream
that broke is continued from it.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from infra.contracts import catalogue, codec
from infra.contracts.assembly import ChunkAssembler
from infra.contracts.bus import Bus, Reader, unread
from infra.contracts.errors import FeedloomError
from infra.contracts.events.generation import GenerationChunk, GenerationResult
from producers.affinity import home_partition
from producers.gateway.errors import ApiError, unavailable
from producers.gateway.identifiers import RequestId
from producers.handle import COMPLETE, LATE_CHUNKS_S

MAX_READERS = 32
SKEW_MS = 10_000
"""The id's time is a gateway's, the records' are the broker's."""
POLL_S = 0.05
READ_S = 30.0

Item = GenerationChunk | GenerationResult | None


@dataclass(frozen=True, slots=True)
class Found:
    """What the topics hold of a request now. ``chunks``: those in order, of the newest run.

    ``last_event``: the number of the newest one in a stream of it; ``None`` without any.
    """

    chunks: tuple[GenerationChunk, ...] = ()
    result: GenerationResult | None = None
    last_event: int | None = None


class TokenLog:
    """Opens a reader for each request that is looked up; ``MAX_READERS`` at once."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._free = asyncio.Semaphore(MAX_READERS)
        # Its own: who follows for long must not keep others' submits waiting for a thread.
        self._threads = ThreadPoolExecutor(MAX_READERS, thread_name_prefix="gateway-lookup")
        self._results = len(bus.end_offsets(catalogue.RESULTS.name))

    async def look(self, request: RequestId) -> Found:
        """What is there now. Raises ApiError 503 when it cannot be read."""
        async with self._slot():
            return await asyncio.get_running_loop().run_in_executor(
                self._threads, self._look, request
            )

    async def follow(self, request: RequestId, *, idle_s: float) -> AsyncIterator[Item]:
        """Every chunk from the first on, in order, then the result; ``None`` while nothing comes.

        Ends after the result. Raises ApiError 503 when the topics cannot be read.
        """
        async with self._slot():
            loop = asyncio.get_running_loop()
            items: asyncio.Queue[Item | FeedloomError] = asyncio.Queue()
            stop = threading.Event()

            def put(item: Item | FeedloomError) -> None:
                loop.call_soon_threadsafe(items.put_nowait, item)

            reading = loop.run_in_executor(self._threads, self._follow, request, put, stop)
            try:
                while True:
                    try:
                        item = await asyncio.wait_for(items.get(), idle_s)
                    except TimeoutError:
                        yield None
                        continue
                    if isinstance(item, FeedloomError):
                        raise _unreadable(item)
                    yield item
                    if isinstance(item, GenerationResult):
                        return
            finally:
                stop.set()
                await reading

    def close(self) -> None:
        """Wait for the readers that are open; their callers are gone."""
        self._threads.shutdown()

    def _slot(self) -> asyncio.Semaphore:
        if self._free.locked():
            raise unavailable(
                f"{MAX_READERS} requests are being looked up already",
                code="overloaded",
                retry_after_s=1.0,
            )
        return self._free

    def _open(self, request: RequestId) -> _Tail:
        home = home_partition(request.text.encode(), self._results)
        partitions = {
            catalogue.CHUNKS.name: [request.partition],
            catalogue.RESULTS.name: [home],
        }
        return _Tail(self._bus, partitions, max(0, request.created_at_ms - SKEW_MS), request.text)

    def _look(self, request: RequestId) -> Found:
        try:
            return self._found(request)
        except ApiError:
            raise
        except FeedloomError as error:
            raise _unreadable(error) from error

    def _found(self, request: RequestId) -> Found:
        tail = self._open(request)
        reduced = _Reduced()
        try:
            deadline = time.monotonic() + READ_S
            while not tail.caught_up:
                if time.monotonic() > deadline:
                    raise unavailable("Kafka is slow to read", code="broker_gone")
                reduced.take(tail.poll())
        finally:
            tail.close()
        return Found(reduced.assembler.chunks, reduced.result, reduced.last_event)

    def _follow(
        self,
        request: RequestId,
        put: Callable[[Item | FeedloomError], None],
        stop: threading.Event,
    ) -> None:
        try:
            tail = self._open(request)
        except FeedloomError as error:
            put(error)
            return
        reduced = _Reduced()
        try:
            while not stop.is_set():
                for chunk in reduced.take(tail.poll()):
                    put(chunk)
                if reduced.ended and tail.caught_up:
                    put(reduced.result)
                    return
        except FeedloomError as error:
            put(error)
        finally:
            tail.close()


def _unreadable(error: FeedloomError) -> ApiError:
    return unavailable(f"Kafka cannot be read: {error}", code="broker_gone")


class _Reduced:
    def __init__(self) -> None:
        self.assembler = ChunkAssembler()
        self.result: GenerationResult | None = None
        self.last_event: int | None = None
        self._result_at = 0.0

    def take(self, events: list[GenerationChunk | GenerationResult]) -> list[GenerationChunk]:
        ready = []
        for event in events:
            if isinstance(event, GenerationChunk):
                following = self.assembler.add(event)
                ready += following
                if following:
                    self.last_event = len(following) + (
                        -1 if self.last_event is None else self.last_event
                    )
            elif self.result is None:
                self.result, self._result_at = event, time.monotonic()
        return ready

    @property
    def ended(self) -> bool:
        """Whether all is there, or the result and its last chunks are lost."""
        if self.result is None:
            return False
        if self.result.finish_reason not in COMPLETE:
            return True
        return self.assembler.finished or time.monotonic() > self._result_at + LATE_CHUNKS_S


class _Tail:
    """The records of one key, since a moment."""

    def __init__(self, bus: Bus, partitions: dict[str, list[int]], since_ms: int, key: str) -> None:
        self._key = key
        self._reader: Reader = bus.reader(list(partitions), partitions=partitions)
        self._left = dict(self._reader.seek_since(since_ms))

    @property
    def caught_up(self) -> bool:
        """Whether all is read that was there when this was opened."""
        self._left = unread(self._reader, self._left) if self._left else {}
        return not self._left

    def poll(self) -> list[GenerationChunk | GenerationResult]:
        found: list[GenerationChunk | GenerationResult] = []
        for record in self._reader.poll(POLL_S):
            if record.key_text != self._key or record.value is None:
                continue
            event = codec.decode_any(record.value)
            if isinstance(event, GenerationChunk | GenerationResult):
                found.append(event)
        return found

    def close(self) -> None:
        self._reader.close()
