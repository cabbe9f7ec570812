"""Publish generation requests and read their answers. Needs neither torch nor vllm nor faust.

One client serves thousands of outstanding requests: it owns one idempotent producer and two
reading threads. Chunks come on the one partition that the client chose and names in its requests.
Results are keyed by request id and so lie on every partition; the client reads them all from the
moment it was made and keeps its own.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Self
from uuid import uuid4

import msgspec
from opentelemetry import trace
from opentelemetry.trace import SpanKind

from infra.contracts import catalogue, codec
from infra.contracts.bus import Bus, Reader, Record, RecordPosition
from infra.contracts.errors import ConfigurationError, ContractError, FeedloomError
from infra.contracts.events.generation import (
    ChatMessage,
    GenerationCancellation,
    GenerationChunk,
    GenerationRequest,
    GenerationResult,
    ReplyAddress,
    SamplingParameters,
)
from infra.kafka.bus import connect
from infra.registry.client import send
from infra.settings import Settings
from observability.messaging import REQUEST_ID, process_attributes, send_attributes
from observability.propagation import extract, inject
from observability.tracing import fail
from producers.affinity import BoundedLoadRouter
from producers.errors import ClientClosed
from producers.handle import GenerationHandle
from producers.inference import Inference

log = logging.getLogger(__name__)
tracer = trace.get_tracer("feedloom.producers")

POLL_S = 0.2
PAUSE_S = 0.0001
LONGEST_PAUSE_S = 0.008
"""Between two polls, for each open request, and at most. A fetch costs as much CPU time as dozens
of records, so many streams are better read together; one alone waits a tenth of a millisecond."""


class GenerationClient:
    """A context manager. ``source`` names the publishing service in CloudEvents headers.

    With ``cancel_on_close`` leaving it asks the workers to stop what is still outstanding, as
    nobody will read it. ``reply_partition`` of the chunk topic is where answers are to be written;
    any, if none is named.
    """

    def __init__(
        self,
        bus: Bus,
        *,
        source: str,
        cancel_on_close: bool = False,
        reply_partition: int | None = None,
    ) -> None:
        self._source = source
        self._cancel_on_close = cancel_on_close
        self._lock = threading.Lock()
        self._open: dict[str, GenerationHandle] = {}
        self._closing = threading.Event()
        self._publisher = bus.publisher(client_id=source)
        count = self.reply_partitions = len(bus.end_offsets(catalogue.CHUNKS.name))
        if reply_partition is not None and reply_partition >= count:
            raise ConfigurationError(
                f"{catalogue.CHUNKS.name} has {count} partitions, and no {reply_partition}"
            )
        self.reply_partition = (
            random.randrange(count)  # nosec B311 # spreads load
            if reply_partition is None
            else reply_partition
        )
        self._routers = {
            spec.name: BoundedLoadRouter(len(bus.end_offsets(spec.name)))
            for spec in (catalogue.REQUESTS, catalogue.REQUESTS_BATCH)
        }
        readers = [
            bus.reader([catalogue.CHUNKS.name], start="latest", partitions=[self.reply_partition]),
            bus.reader([catalogue.RESULTS.name], start="latest"),
        ]
        accepts = [self._accept_chunk, self._accept_result]
        self._threads = [
            threading.Thread(
                target=self._read, args=(reader, accept), name=f"{source}-reader", daemon=True
            )
            for reader, accept in zip(readers, accepts, strict=True)
        ]
        for thread in self._threads:
            thread.start()

    @classmethod
    def connect(cls, settings: Settings, *, source: str) -> Self:
        """A client on the broker that the settings name."""
        return cls(connect(settings), source=source)

    def submit(
        self,
        prompt: str = "",
        *,
        model: str = "default",
        sampling: SamplingParameters | Mapping[str, Any] | None = None,
        messages: Sequence[ChatMessage] = (),
        affinity_key: str | None = None,
        batch: bool = False,
        ttl_s: float | None = None,
        tenant: str | None = None,
        user: str | None = None,
        metadata: Mapping[str, str] | None = None,
        request_id: str | None = None,
        submit_id: str | None = None,
        reply_partition: int | None = None,
    ) -> GenerationHandle:
        """Publish one request; returns at once.

        Without ``sampling`` the platform's settings ``sampling.*`` hold; with a mapping they hold
        for the fields that it leaves out. A worker that gets both ids again answers once. Chunks
        come here unless another ``reply_partition`` is named. ``messages`` make it a conversation
        to be answered; ``prompt`` is then empty. Requests with one ``affinity_key`` (a
        conversation, a tenant; ``affinity.prefix_key`` of a shared beginning) go to one worker,
        whose prefix cache knows them, unless that one has far more of this client's requests than
        the others. ``batch`` requests may wait: they run in what interactive ones leave free. After
        ``ttl_s`` seconds the request is not worth an answer.

        Raises:
            ClientClosed: the client was closed.
            ValueError: ``request_id`` is still outstanding on this client.
        """
        now_ms = time.time_ns() // 1_000_000
        request = GenerationRequest(
            request_id=request_id or str(uuid4()),
            submit_id=submit_id or str(uuid4()),
            prompt=prompt,
            created_at_ms=now_ms,
            model=model,
            messages=tuple(messages),
            sampling=_all_fields(sampling),
            affinity_key=affinity_key,
            reply=ReplyAddress(
                partition=self.reply_partition if reply_partition is None else reply_partition
            ),
            deadline_ms=None if ttl_s is None else now_ms + int(1000 * ttl_s),
            tenant=tenant,
            user=user,
            metadata=dict(metadata or {}),
        )
        topic = catalogue.REQUESTS_BATCH.name if batch else catalogue.REQUESTS.name
        asked = None if isinstance(sampling, SamplingParameters) else frozenset(sampling or ())
        inference = Inference(tracer, request, names=asked)
        handle = GenerationHandle(
            request,
            inference=inference,
            cancel=lambda reason: self.cancel(request.request_id, reason),
        )
        try:
            with self._lock:
                if self._closing.is_set():
                    raise ClientClosed("the client is closed")
                if request.request_id in self._open:
                    raise ValueError(f"request {request.request_id} is still outstanding")
                self._open[request.request_id] = handle
                if affinity_key is not None:
                    handle.route = topic, self._routers[topic].choose(affinity_key.encode())
            handle.written = self._send(topic, request, handle, affinity_key, sampling)
        except BaseException as error:
            self._release(handle)
            inference.end(error=error)
            raise
        handle.written.add_done_callback(lambda done: self._published(handle, done))
        return handle

    def _send(
        self,
        topic: str,
        request: GenerationRequest,
        handle: GenerationHandle,
        affinity_key: str | None,
        sampling: SamplingParameters | Mapping[str, Any] | None,
    ) -> Future[RecordPosition]:
        """The span ends when the broker has the record, and says where."""
        key = affinity_key or request.request_id
        span = tracer.start_span(
            f"send {topic}",
            handle.inference.context,
            kind=SpanKind.PRODUCER,
            attributes=send_attributes(topic, key=key) | {REQUEST_ID: request.request_id},
        )
        headers = codec.event_headers(request, event_id=request.submit_id, source=self._source)
        if request.deadline_ms is not None:
            headers.append((codec.DEADLINE_HEADER, str(request.deadline_ms).encode()))

        def sent(done: Future[RecordPosition]) -> None:
            error = done.exception()
            if error is None:
                position = done.result()
                span.set_attribute("messaging.destination.partition.id", str(position.partition))
                span.set_attribute("messaging.kafka.offset", position.offset)
            else:
                fail(span, type(error).__qualname__, str(error))
            span.end()

        try:
            future = self._publisher.publish(
                topic,
                key=key.encode(),
                value=_encode(request, sampling),
                headers=inject(headers, trace.set_span_in_context(span)),
                partition=None if handle.route is None else handle.route[1],
            )
        except BaseException:
            span.end()
            raise
        future.add_done_callback(sent)
        return future

    def cancel(self, request_id: str, reason: str | None = None) -> Future[RecordPosition]:
        """Ask the workers to stop any request; ends when that is written."""
        event = GenerationCancellation(
            request_id=request_id, created_at_ms=time.time_ns() // 1_000_000, reason=reason
        )
        return send(
            self._publisher, catalogue.CANCELLATIONS.name, request_id, event, source=self._source
        )

    def forget(self, request_id: str) -> None:
        """Nobody waits for this request any more."""
        with self._lock:
            handle = self._open.get(request_id)
        if handle is not None:
            self._release(handle)
            handle.inference.end()

    @property
    def alive(self) -> bool:
        """Whether answers are still read."""
        return all(thread.is_alive() for thread in self._threads)

    @property
    def outstanding(self) -> int:
        """Requests without a result yet."""
        with self._lock:
            return sum(not handle.done for handle in self._open.values())

    def close(self) -> None:
        """Flush, stop reading, fail what is outstanding with ClientClosed. Safe to call twice."""
        with self._lock:
            if self._closing.is_set():
                return
            self._closing.set()
            abandoned = list(self._open.values())
            self._open.clear()
        if self._cancel_on_close:
            for handle in abandoned:
                if not handle.done:
                    self.cancel(handle.request.request_id, "the client was closed")
        self._publisher.close()
        for thread in self._threads:
            thread.join()
        for handle in abandoned:
            handle.fail(ClientClosed(f"closed before {handle.request.request_id} was answered"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _published(self, handle: GenerationHandle, done: Future[RecordPosition]) -> None:
        error = done.exception()
        if error is not None:
            self._release(handle)
            handle.fail(error)

    def _read(self, reader: Reader, accept: Callable[[Record], GenerationHandle | None]) -> None:
        try:
            while not self._closing.is_set():
                records = reader.poll(POLL_S)
                if records:
                    self._dispatch(records, accept)
                    self._closing.wait(self._pause_s())
        except FeedloomError as error:
            with self._lock:
                handles = list(self._open.values())
            for handle in handles:
                handle.fail(error)
        finally:
            reader.close()

    def _pause_s(self) -> float:
        """Until the next poll."""
        return min(LONGEST_PAUSE_S, PAUSE_S * len(self._open))

    def _dispatch(
        self, records: Sequence[Record], accept: Callable[[Record], GenerationHandle | None]
    ) -> None:
        # Told at the end: who is woken at once takes the interpreter from this loop.
        changed: dict[GenerationHandle, None] = {}
        for record in records:
            if record.value is None:
                continue
            try:
                handle = accept(record)
                if handle is not None:
                    changed[handle] = None
            except ContractError as error:
                log.warning("unreadable record on %s: %s", record.where, error)
        for handle in changed:
            handle.notify()

    def _accept_chunk(self, record: Record) -> GenerationHandle | None:
        # Other clients share the partition: their records are told apart by key, undecoded.
        handle = self._handle_of(record)
        if handle is None or record.value is None:
            return None
        chunk = codec.decode(record.value, GenerationChunk)
        if chunk.submit_id != handle.request.submit_id:
            return None
        handle.accept_chunk(chunk)
        # The handle must outlive its result here: chunks may come after it.
        if chunk.final and handle.done:
            self._release(handle)
        return handle

    def _accept_result(self, record: Record) -> GenerationHandle | None:
        handle = self._handle_of(record)
        if handle is None or record.value is None:
            return None
        result = codec.decode(record.value, GenerationResult)
        if result.submit_id != handle.request.submit_id:
            return None
        with tracer.start_as_current_span(
            f"process {catalogue.RESULTS.name}",
            context=extract(record.headers),
            kind=SpanKind.CONSUMER,
            attributes=process_attributes(record) | {REQUEST_ID: result.request_id},
        ):
            with self._lock:
                self._arrived(handle)
            handle.accept_result(result)
        if handle.chunks_finished:
            self._release(handle)
        return handle

    def _handle_of(self, record: Record) -> GenerationHandle | None:
        with self._lock:
            return self._open.get(record.key_text)

    def _arrived(self, handle: GenerationHandle) -> None:
        """Its partition has one less to do. Call with the lock held."""
        if handle.route is not None:
            topic, partition = handle.route
            handle.route = None
            self._routers[topic].done(partition)

    def _release(self, handle: GenerationHandle) -> None:
        """It is not outstanding any more; another request of its id stays."""
        request_id = handle.request.request_id
        with self._lock:
            self._arrived(handle)
            if self._open.get(request_id) is handle:
                del self._open[request_id]


def _all_fields(given: SamplingParameters | Mapping[str, Any] | None) -> SamplingParameters:
    if isinstance(given, SamplingParameters):
        return given
    return msgspec.convert(given or {}, SamplingParameters)


def _encode(
    request: GenerationRequest, given: SamplingParameters | Mapping[str, Any] | None
) -> bytes:
    """Without the fields for which the platform's defaults hold: they may change while it waits."""
    if isinstance(given, SamplingParameters):
        return codec.encode(request)
    document = msgspec.to_builtins(request)
    document["sampling"] = {name: document["sampling"][name] for name in given or {}}
    if not document["sampling"]:
        del document["sampling"]
    encoded: bytes = msgspec.json.encode(document)
    return encoded
