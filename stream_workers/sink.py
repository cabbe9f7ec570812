"""Answers as records: chunks go out at once, what ends a request waits for its transaction."""

from __future__ import annotations

import time
import uuid
from collections.abc import Awaitable
from typing import Any, Protocol

from aiokafka.errors import KafkaError
from opentelemetry import trace

from infra.contracts.bus import Record
from infra.contracts.catalogue import CHUNKS, EXAMPLES, RESULTS
from infra.contracts.codec import Headers, dead_letter_headers, encode, event_headers
from infra.contracts.events.base import Event
from infra.contracts.events.feedback import FeedbackExample, FeedbackForgotten
from infra.contracts.events.generation import GenerationChunk, GenerationRequest, GenerationResult
from observability.instruments import DEAD_LETTERS, DESTINATION, ERROR_TYPE, MESSAGES_SENT
from observability.messaging import REQUEST_ID, count_sent, measured, sending
from observability.propagation import forward, inject
from observability.tracing import is_recording
from stream_workers.transactions import Outgoing

_TRACER = trace.get_tracer("feedloom.stream_workers")
_CHUNKS = measured("send", CHUNKS.name)

SOURCE_HEADER = "feedloom.source"
"""``topic/partition/offset`` of the request a chunk answers: how a new owner finds its chunks."""

NULL_HEADER = "__feedloom.dlq.null_value"
"""Marks a dead letter that had neither key nor value, which no client library sends."""


MOVED_HEADER = "feedloom.moved_from"
"""``partition/offset`` where a record was before a worker moved it to its key's partition."""


def may_move(record: Record, home: int) -> bool:
    """Once is enough: workers that count partitions differently would move it for ever."""
    return record.partition != home and all(name != MOVED_HEADER for name, _ in record.headers)


class Producer(Protocol):
    """The one method of Faust's producer that is used. Awaiting twice waits for the broker."""

    async def send(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        partition: int | None,
        timestamp: float | None,
        headers: Any,
    ) -> Awaitable[Any]:
        """Enqueue, waiting while the buffer is full."""
        ...


class KafkaSink:
    """Implements ``handler.Sink``. ``chunk_partitions``: count of the chunks topic."""

    def __init__(
        self, producer: Producer, *, prefix: str, source: str, chunk_partitions: int
    ) -> None:
        self._producer = producer
        self._prefix = prefix
        self._source = source
        self._chunk_partitions = chunk_partitions

    async def chunk(
        self, request: GenerationRequest, chunk: GenerationChunk, source: Record
    ) -> Awaitable[object]:
        """A reply partition beyond the topic's count wraps round, so that the answer is found."""
        partition = None
        if request.reply is not None:
            partition = request.reply.partition % self._chunk_partitions
        event_id = f"{chunk.request_id}/{chunk.epoch}.{chunk.attempt}.{chunk.seq}"
        headers = self._headers(chunk, event_id, source.headers)
        origin = f"{source.topic}/{source.partition}/{source.offset}"
        headers.append((SOURCE_HEADER, origin.encode()))
        MESSAGES_SENT.add(1, _CHUNKS)
        return await self._producer.send(
            self._prefix + CHUNKS.name,
            chunk.request_id.encode(),
            encode(chunk),
            partition,
            None,
            headers,
        )

    def result(self, result: GenerationResult, source: Record) -> Outgoing:
        """The result, keyed by request id."""
        with sending(
            _TRACER,
            RESULTS.name,
            key=result.request_id,
            attributes={REQUEST_ID: result.request_id},
        ):
            return Outgoing(
                self._prefix + RESULTS.name,
                result.request_id.encode(),
                encode(result),
                self._headers(result, f"{result.request_id}/{result.epoch}.result", source.headers),
            )

    def dead_letter(self, record: Record, error: BaseException) -> Outgoing:
        """The untouched bytes for ``<topic>.dlq``, with headers that say whence and why."""
        DEAD_LETTERS.add(1, {DESTINATION: record.topic, ERROR_TYPE: type(error).__qualname__})
        headers = dead_letter_headers(
            record.headers,
            topic=record.topic,
            partition=record.partition,
            offset=record.offset,
            error=error,
        )
        value = record.value
        if record.key is None and value is None:
            value = b""
            headers.append((NULL_HEADER, b"true"))
        return Outgoing(f"{self._prefix}{record.topic}.dlq", record.key, value, headers)

    async def publish_dead_letter(self, record: Record, error: BaseException) -> None:
        """For topics without a transaction; returns once the broker has it."""
        letter = self.dead_letter(record, error)
        await self._sent(f"{record.topic}.dlq", letter.key, letter.value, list(letter.headers))

    async def move(self, record: Record, partition: int) -> None:
        """The same record on another partition of its topic. Returns once the broker has it."""
        origin = f"{record.partition}/{record.offset}"
        headers = [*record.headers, (MOVED_HEADER, origin.encode())]
        await self._sent(record.topic, record.key, record.value, headers, partition=partition)

    async def example(self, example: FeedbackExample, source: Record) -> int:
        """Returns its offset, once the broker has it."""
        return await self._send_example(example, encode(example), source)

    async def forget(self, event: FeedbackForgotten, source: Record) -> int:
        """A tombstone in place of its example. Returns its offset, once the broker has it."""
        return await self._send_example(event, None, source)

    async def _send_example(
        self, event: FeedbackExample | FeedbackForgotten, value: bytes | None, source: Record
    ) -> int:
        with sending(
            _TRACER,
            EXAMPLES.name,
            key=event.request_id,
            attributes={REQUEST_ID: event.request_id},
        ):
            return await self._sent(
                EXAMPLES.name,
                event.request_id.encode(),
                value,
                self._headers(event, uuid.uuid4().hex, source.headers),
            )

    async def _sent(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        headers: list[tuple[str, bytes]],
        *,
        partition: int | None = None,
    ) -> int:
        """Returns its offset, once the broker has it. ``topic``: without the prefix."""
        began = time.perf_counter()
        try:
            sent = await (
                await self._producer.send(
                    self._prefix + topic, key, value, partition, None, headers
                )
            )
        except KafkaError as error:
            count_sent(topic, time.perf_counter() - began, error=error)
            raise
        count_sent(topic, time.perf_counter() - began)
        offset: int = sent.offset
        return offset

    def _headers(self, event: Event, event_id: str, source: Headers) -> list[tuple[str, bytes]]:
        headers = event_headers(event, event_id=event_id, source=self._source)
        return inject(headers) if is_recording() else forward(headers, source)
