"""Answers onto Kafka through Faust's producer (acks=all, idempotent)."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable
from typing import Any, Protocol

from opentelemetry import trace
from opentelemetry.trace import SpanKind

from infra.contracts.bus import Record
from infra.contracts.catalogue import CHUNKS, EXAMPLES, RESULTS
from infra.contracts.codec import Headers, dead_letter_headers, encode, event_headers
from infra.contracts.events import (
    Event,
    FeedbackExample,
    GenerationChunk,
    GenerationRequest,
    GenerationResult,
)
from observability.propagation import inject

_TRACER = trace.get_tracer("feedloom.stream_workers")


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

    async def chunk(self, request: GenerationRequest, chunk: GenerationChunk) -> None:
        """A reply partition beyond the topic's count wraps round, so that the answer is found."""
        partition = None
        if request.reply is not None:
            partition = request.reply.partition % self._chunk_partitions
        await self._send(CHUNKS.name, chunk, chunk.request_id, partition)

    async def result(self, result: GenerationResult) -> None:
        """Returns once the broker has it."""
        with _TRACER.start_as_current_span(f"send {RESULTS.name}", kind=SpanKind.PRODUCER):
            await (await self._send(RESULTS.name, result, result.request_id))

    async def example(self, example: FeedbackExample) -> None:
        """Returns once the broker has it."""
        with _TRACER.start_as_current_span(f"send {EXAMPLES.name}", kind=SpanKind.PRODUCER):
            await (await self._send(EXAMPLES.name, example, example.request_id))

    async def dead_letter(self, record: Record, error: BaseException) -> None:
        """The untouched bytes to ``<topic>.dlq``; returns once the broker has them."""
        headers = dead_letter_headers(
            record.headers,
            topic=record.topic,
            partition=record.partition,
            offset=record.offset,
            error=error,
        )
        topic = f"{record.topic}.dlq"
        await (await self._write(topic, record.key, record.value, None, headers))

    async def _send(
        self, topic: str, event: Event, key: str, partition: int | None = None
    ) -> Awaitable[Any]:
        headers = inject(event_headers(event, event_id=str(uuid.uuid4()), source=self._source))
        return await self._write(topic, key.encode(), encode(event), partition, headers)

    async def _write(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        partition: int | None,
        headers: Headers,
    ) -> Awaitable[Any]:
        return await self._producer.send(
            self._prefix + topic, key, value, partition, None, list(headers)
        )
