"""The Faust application: its settings and its transports.

Its agents are in ``join_agents``. Requests do not pass through agents: see ``consumer``.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import faust
from faust.auth import SASLCredentials, SSLCredentials
from faust.tables.manager import TableManager
from faust.tables.recovery import Recovery, ServiceStopped
from faust.transport.drivers.aiokafka import Producer, Transport
from mode.utils.queues import FlowControlEvent

from infra.contracts.bus import TopicPartition
from infra.contracts.catalogue import REQUESTS, REQUESTS_BATCH
from infra.kafka.connection import sasl_password, security_options, tls_context
from infra.settings import KafkaSettings, WorkerSettings
from stream_workers.consumer import RequestTransport, Stored
from stream_workers.join_table import JoinTable

REQUEST_TOPICS = (REQUESTS.name, REQUESTS_BATCH.name)


def faust_app(
    kafka: KafkaSettings,
    worker: WorkerSettings,
    *,
    partitions: int,
    replicas: int,
    datadir: Path,
    stored: Stored,
) -> Any:
    """A configured application without agents. ``partitions`` and ``replicas``: of the joined
    topics as they are, for the table that they are joined in.
    """
    assert kafka.bootstrap_servers is not None
    servers = kafka.bootstrap_servers.split(",")
    app = _App(
        kafka.topic_prefix + worker.group,
        broker=[f"aiokafka://{server.strip()}" for server in servers],
        broker_credentials=_credentials(kafka),
        datadir=str(datadir),
        Table=JoinTable,
        TableManager=_Tables,
        # A copy in another worker's memory would be read anew all the same when it takes over.
        table_standby_replicas=0,
        key_serializer="raw",
        value_serializer="raw",
        topic_partitions=partitions,
        topic_replication_factor=replicas,
        topic_disable_leader=True,
        # A rebalance must not wait for the longest generation.
        stream_wait_empty=False,
        broker_commit_interval=0.5,
        broker_session_timeout=worker.session_timeout_s,
        broker_heartbeat_interval=worker.session_timeout_s / 10,
        broker_max_poll_interval=1000.0,
        broker_max_poll_records=500,
        # Partitions may rest for long under back-pressure: that is not a livelock.
        broker_commit_livelock_soft_timeout=3600.0,
        stream_processing_timeout=3600.0,
        consumer_auto_offset_reset="earliest",
        producer_acks=-1,
        # Health and readiness are served by stream_workers.health.
        web_enabled=False,
    )
    app.producer_transport = _IdempotentTransport(app.conf.broker_producer, app)
    app.transport = RequestTransport(
        app.conf.broker_consumer,
        app,
        prefix=kafka.topic_prefix,
        topics=REQUEST_TOPICS,
        stored=stored,
    )
    return app


class _Flow(FlowControlEvent):  # type: ignore[misc]
    """Faust resumes it once more behind its seek, and would drop what agents were given since."""

    def __init__(self, app: _App) -> None:
        super().__init__()
        self._app = app

    def resume(self) -> None:
        if not (self.is_active() and self._app.consumer.sought):
            super().resume()


class _Recovery(Recovery):  # type: ignore[misc]
    async def _wait(self, coro: Any, timeout: Any = None) -> None:
        """Faust's hook. It takes a step that lasts too long for its own end, and then rests."""
        try:
            await super()._wait(coro, timeout)
        except ServiceStopped:
            if self.should_stop:
                raise
            raise TimeoutError(
                f"partitions could not be taken over: a step of it took more than {timeout:g} s"
            ) from None


class _Tables(TableManager):  # type: ignore[misc]
    _recovery: _Recovery | None

    @property
    def recovery(self) -> _Recovery:
        """Faust's hook."""
        if self._recovery is None:
            self._recovery = _Recovery(self.app, self, beacon=self.beacon, loop=self.loop)
        return self._recovery


class _App(faust.App):  # type: ignore[misc]
    @cached_property
    def flow_control(self) -> FlowControlEvent:
        """Faust's hook."""
        return _Flow(self)

    async def _on_agent_error(self, agent: Any, exc: BaseException) -> None:
        """End the worker: what is not acknowledged comes again, to whoever has the partition.

        Faust's own commits, and starts the agent again behind what it failed at.
        """
        await self.crash(exc)


class _IdempotentProducer(Producer):  # type: ignore[misc]
    """Faust asks for idempotence only inside transactions."""

    def _settings_extra(self) -> Mapping[str, Any]:
        return {"acks": "all", "enable_idempotence": True}


class _IdempotentTransport(Transport):  # type: ignore[misc]
    Producer = _IdempotentProducer


def _credentials(kafka: KafkaSettings) -> Any:
    context = tls_context(kafka)
    if kafka.sasl_mechanism is not None:
        return SASLCredentials(
            username=kafka.sasl_username,
            password=sasl_password(kafka),
            mechanism=kafka.sasl_mechanism,
            ssl_context=context,
        )
    return None if context is None else SSLCredentials(context)


def aiokafka_options(kafka: KafkaSettings) -> dict[str, Any]:
    """Address and security of a deployment, as aiokafka's clients take them."""
    return {"bootstrap_servers": kafka.bootstrap_servers, **security_options(kafka)}


class LazyFlow:
    """``dispatcher.Flow``. Faust makes its consumer on start; this looks it up on each call."""

    def __init__(self, app: Any) -> None:
        self._app = app

    def pause(self, partition: TopicPartition) -> None:
        """Stop fetching it."""
        self._app.consumer.pause(partition)

    def resume(self, partition: TopicPartition) -> None:
        """Fetch it again."""
        self._app.consumer.resume(partition)


class LazyProducer:
    """``sink.Producer``. Faust makes its producer on start; this looks it up on each call."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def send(self, *arguments: Any) -> Any:
        """As ``sink.Producer.send``."""
        return await self._app.producer.send(*arguments)
