"""The Faust application: partitions in, handler tasks, acknowledgements out in order.

Request streams run with ``noack``; every record is entered in its partition's OffsetTracker when it
is delivered and acked through it, because Faust miscounts out-of-order acks (see ``offsets``).
Work of a revoked partition goes on in case the partition comes back, and is cancelled when it
does not.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import faust
from faust.auth import SASLCredentials, SSLCredentials
from faust.transport.drivers.aiokafka import Producer, Transport
from opentelemetry import trace
from opentelemetry.trace import SpanKind

from infra.contracts.bus import Record
from infra.contracts.catalogue import FEEDBACK, REQUESTS, REQUESTS_BATCH, RESULTS
from infra.contracts.codec import decode
from infra.contracts.errors import ConfigurationError, ContractError, MalformedRecord
from infra.contracts.events import FeedbackReceived, GenerationResult
from infra.settings import KafkaSettings, WorkerSettings
from observability.propagation import extract
from stream_workers.admission import Admission
from stream_workers.feedback import decode_state, encode_state, join
from stream_workers.handler import Prepared, RequestHandler
from stream_workers.offsets import OffsetTracker
from stream_workers.sink import KafkaSink

_LOG = logging.getLogger(__name__)
_TRACER = trace.get_tracer("feedloom.stream_workers")


def faust_app(
    kafka: KafkaSettings, worker: WorkerSettings, *, partitions: int, datadir: Path
) -> Any:
    """A configured application without agents. ``partitions``: real count of the joined topics."""
    assert kafka.bootstrap_servers is not None
    servers = kafka.bootstrap_servers.split(",")
    app = faust.App(
        kafka.topic_prefix + worker.group,
        broker=[f"aiokafka://{server.strip()}" for server in servers],
        broker_credentials=_credentials(kafka),
        datadir=str(datadir),
        store="memory://",
        key_serializer="raw",
        value_serializer="raw",
        topic_partitions=partitions,
        topic_replication_factor=kafka.replication_factor,
        topic_disable_leader=True,
        # Many long generations must not be hoarded by one worker.
        stream_buffer_maxsize=16,
        # A rebalance must not wait for the longest generation.
        stream_wait_empty=False,
        broker_commit_interval=0.5,
        broker_session_timeout=30.0,
        broker_heartbeat_interval=3.0,
        broker_max_poll_interval=1000.0,
        # Partitions may rest for long under back-pressure: that is not a livelock.
        broker_commit_livelock_soft_timeout=3600.0,
        consumer_auto_offset_reset="earliest",
        producer_acks=-1,
        web_enabled=worker.web_port != 0,
        web_bind="127.0.0.1",
        web_host="127.0.0.1",
        web_port=worker.web_port or 6066,
    )
    app.producer_transport = _IdempotentTransport(app.conf.broker_producer, app)
    return app


class _IdempotentProducer(Producer):  # type: ignore[misc]
    """Faust asks for idempotence only inside transactions."""

    def _settings_extra(self) -> Mapping[str, Any]:
        return {"acks": "all", "enable_idempotence": True}


class _IdempotentTransport(Transport):  # type: ignore[misc]
    Producer = _IdempotentProducer


def _credentials(kafka: KafkaSettings) -> Any:
    context = None
    if kafka.security_protocol in ("SSL", "SASL_SSL"):
        cafile = None if kafka.ssl_cafile is None else str(kafka.ssl_cafile)
        context = ssl.create_default_context(cafile=cafile)
    if kafka.security_protocol.startswith("SASL"):
        if kafka.sasl_mechanism is None:
            raise ConfigurationError("kafka.sasl_mechanism is needed with SASL")
        return SASLCredentials(
            username=kafka.sasl_username,
            password=kafka.sasl_password,
            mechanism=kafka.sasl_mechanism,
            ssl_context=context,
        )
    return None if context is None else SSLCredentials(context)


class WorkerApp:
    """Agents on a Faust application. ``on_fatal`` is called when the worker must stop."""

    def __init__(
        self,
        app: Any,
        *,
        prefix: str,
        max_inflight_tokens: int,
        on_fatal: Callable[[BaseException], None],
    ) -> None:
        self._app = app
        self._prefix = prefix
        self._on_fatal = on_fatal
        self._admission = Admission(max_inflight_tokens)
        self._trackers: dict[Any, OffsetTracker] = {}
        self._tasks: dict[asyncio.Task[None], Any] = {}
        self._messages: dict[Any, dict[int, Any]] = {}
        self._draining = False
        self.handler: RequestHandler | None = None
        self.sink: KafkaSink | None = None
        for spec in (REQUESTS, REQUESTS_BATCH):
            topic = self._topic(spec.name)
            app.agent(topic, name=f"generate-{spec.name}")(self._generate)
        # Raw bytes on the changelog: the application's default serializers.
        self._table = app.Table("feedback-join", key_type=bytes, value_type=bytes)
        app.agent(self._topic(RESULTS.name), name="join-results")(self._join_results)
        app.agent(self._topic(FEEDBACK.name), name="join-feedback")(self._join_feedback)
        # Kept in attributes: Faust's signals hold their receivers weakly.
        app.on_partitions_revoked.connect(self._revoked)
        app.on_partitions_assigned.connect(self._assigned)

    def _topic(self, name: str) -> Any:
        return self._app.topic(
            self._prefix + name,
            key_type=bytes,
            value_type=bytes,
            key_serializer="raw",
            value_serializer="raw",
        )

    def _record(self, event: Any) -> Record:
        message = event.message
        headers = message.headers or ()
        pairs = headers.items() if isinstance(headers, Mapping) else headers
        return Record(
            topic=message.topic.removeprefix(self._prefix),
            partition=message.partition,
            offset=message.offset,
            timestamp_ms=int(message.timestamp * 1000),
            key=message.key,
            value=message.value,
            headers=tuple((str(key), bytes(value or b"")) for key, value in pairs),
        )

    async def _generate(self, stream: Any) -> None:
        async for event in stream.noack().events():
            tp = event.message.tp
            tracker = self._trackers.setdefault(tp, OffsetTracker())
            tracker.deliver(event.message.offset)
            assert self.handler is not None
            prepared = self.handler.prepare(self._record(event))
            await self._admission.acquire(prepared.cost)
            if self._draining or self._trackers.get(tp) is not tracker:
                self._admission.release(prepared.cost)
                continue
            task = asyncio.create_task(self._run(prepared, event, tracker))
            self._tasks[task] = tp
            task.add_done_callback(self._done)

    async def _run(self, prepared: Prepared, event: Any, tracker: OffsetTracker) -> None:
        assert self.handler is not None
        try:
            await self.handler.run(prepared)
        finally:
            self._admission.release(prepared.cost)
        tp = event.message.tp
        if self._trackers.get(tp) is tracker:
            self._messages.setdefault(tp, {})[event.message.offset] = event
            for offset in tracker.finish(event.message.offset):
                self._messages[tp].pop(offset).ack()

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            _LOG.error("a request could not be brought to an end", exc_info=error)
            self._on_fatal(error)

    async def _revoked(self, sender: Any, revoked: Any, **_: Any) -> None:
        for tp in revoked:
            self._trackers.pop(tp, None)
            self._messages.pop(tp, None)

    async def _assigned(self, sender: Any, assigned: Any, **_: Any) -> None:
        for task, tp in list(self._tasks.items()):
            if tp not in assigned:
                task.cancel()

    async def _join_results(self, stream: Any) -> None:
        async for event in stream.events():
            await self._join(event, GenerationResult)

    async def _join_feedback(self, stream: Any) -> None:
        async for event in stream.events():
            await self._join(event, FeedbackReceived)

    async def _join(
        self, event: Any, kind: type[GenerationResult] | type[FeedbackReceived]
    ) -> None:
        assert self.sink is not None
        record = self._record(event)
        with _TRACER.start_as_current_span(
            f"process {record.topic}", context=extract(record.headers), kind=SpanKind.CONSUMER
        ):
            try:
                if record.value is None:
                    raise MalformedRecord("no value")
                received = decode(record.value, kind)
            except ContractError as error:
                await self.sink.dead_letter(record, error)
                return
            key = received.request_id.encode()
            state = decode_state(self._table.get(key))
            following, example = join(state, received)
            if example is not None:
                await self.sink.example(example)
            if following != state:
                self._table[key] = encode_state(following)

    async def drain(self, timeout_s: float) -> bool:
        """Take nothing new, let what runs end; True if all of it ended in time. Commits."""
        self._draining = True
        self._app.consumer.stop_flow()
        self._app.flow_control.suspend()
        tasks = list(self._tasks)
        left: set[asyncio.Task[None]] = set()
        if tasks:
            _, left = await asyncio.wait(tasks, timeout=timeout_s)
        for task in left:
            task.cancel()
        await self._app.consumer.commit()
        return not left
