"""Requests as the SDK writes them and answers as a worker writes them, for sides without either."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable
from concurrent.futures import Future
from uuid import UUID, uuid4

from benchmarks.harness import Broken
from infra.contracts import catalogue, codec
from infra.contracts.bus import Bus, RecordPosition
from infra.contracts.events.generation import (
    GenerationChunk,
    GenerationRequest,
    GenerationResult,
    ReplyAddress,
    SamplingParameters,
    Timings,
)

TEXT = (
    "the-quick-brown-fox-jumps-over-the-lazy-dog-while-seven-wizards-quietly-box-up-"
    "five-dozen-jugs-of-liquid-amber"
)
"""One word, since the in-memory engine works on every word of a prompt."""

TRACEPARENT = ("traceparent", b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
Headers = list[tuple[str, bytes]]


def request_of(
    number: int, *, max_tokens: int = 1, key: str | None = None, partitions: int = 12
) -> GenerationRequest:
    """Request ``number``: same number, same bytes, but for the moment it was created."""
    draw = random.Random(number)
    return GenerationRequest(
        request_id=str(UUID(int=draw.getrandbits(128), version=4)),
        submit_id=str(UUID(int=draw.getrandbits(128), version=4)),
        prompt=f"{TEXT}-{number}",
        created_at_ms=time.time_ns() // 1_000_000,
        sampling=SamplingParameters(max_tokens=max_tokens),
        affinity_key=key,
        reply=ReplyAddress(partition=number % partitions),
    )


def publish_requests(
    bus: Bus,
    requests: Iterable[GenerationRequest],
    *,
    spread_over: int | None = None,
    topic: str = catalogue.REQUESTS.name,
) -> int:
    """Publish requests and wait for all of them; returns how many.

    ``spread_over``: that many partitions in turn, whatever the key.
    """
    publisher = bus.publisher(client_id="benchmark")
    pending: list[Future[RecordPosition]] = []
    for number, request in enumerate(requests):
        headers = codec.event_headers(request, event_id=request.submit_id, source="benchmark")
        pending.append(
            publisher.publish(
                topic,
                key=(request.affinity_key or request.request_id).encode(),
                value=codec.encode(request),
                headers=[*headers, TRACEPARENT],
                partition=None if spread_over is None else number % spread_over,
            )
        )
    publisher.flush(120)
    publisher.close()
    for future in pending:
        if future.exception(0) is not None:
            raise Broken(f"a request could not be published: {future.exception()}")
    return len(pending)


def answer_headers(event: GenerationChunk | GenerationResult) -> Headers:
    """As ``stream_workers.sink`` writes them."""
    headers = codec.event_headers(event, event_id=uuid4().hex, source="worker/benchmark-worker-0")
    return [*headers, TRACEPARENT]


def chunk_of(request: GenerationRequest) -> GenerationChunk:
    """The one chunk of an answer of one token."""
    return GenerationChunk(
        request_id=request.request_id,
        submit_id=request.submit_id,
        epoch=1,
        attempt=0,
        seq=0,
        first_token=0,
        token_ids=(12345,),
        text=f"{request.prompt} ",
        model_version="default@1",
        emitted_at_ms=time.time_ns() // 1_000_000,
        final=True,
    )


def result_of(request: GenerationRequest) -> GenerationResult:
    """The result of an answer of one token."""
    now = time.time_ns() // 1_000_000
    return GenerationResult(
        request_id=request.request_id,
        submit_id=request.submit_id,
        model=request.model,
        prompt=request.prompt,
        text=f"{request.prompt} ",
        finish_reason="length",
        prompt_tokens=1,
        output_tokens=1,
        model_versions=("default@1",),
        created_at_ms=request.created_at_ms,
        finished_at_ms=now,
        epoch=1,
        worker_id="benchmark.worker-0",
        timings=Timings(
            queue_ms=12345.678901234567,
            ttft_ms=12.345678901234567,
            total_ms=12.345678901234567,
        ),
    )
