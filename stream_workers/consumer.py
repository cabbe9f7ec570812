"""Faust's consumer, extended: request topics go to a dispatcher in whole batches.

Faust delivers each message through a conductor, a queue and a stream iterator, with several tasks
and locks a message, and acks each through counters that miscount (faust-streaming 606). Requests
need none of it: they are not joined, they end in any order, and their offsets are committed in
the transactions that hold their results. So the consumer hands them over as they were fetched.
Group membership, rebalancing, table recovery and every other topic stay Faust's.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from typing import Any, Protocol

from aiokafka.structs import TopicPartition as BrokerPartition
from faust.transport.consumer import ensure_TP
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread, Consumer, Transport
from faust.types import TP

from infra.contracts.bus import Record, TopicPartition
from observability.messaging import count_polled
from stream_workers.lag import PartitionLag
from stream_workers.transactions import Committed, GroupMember

FETCH_WAIT_MS = 500
"""How long the broker may hold back an empty fetch, Kafka's default.

aiokafka has one fetch under way for a broker: a partition that is resumed waits for it to return.
"""
POLL_S = 0.1
"""How long one fetch may keep a partition that was resumed meanwhile waiting."""


class Intake(Protocol):
    """Who takes the requests. See ``dispatcher.Dispatcher``."""

    def take(self, partition: TopicPartition, records: Iterable[Record]) -> None: ...

    def next_offset(self, partition: TopicPartition) -> int | None: ...

    def pump(self) -> None: ...

    async def opened(
        self, stored: Mapping[TopicPartition, Committed], member: GroupMember
    ) -> dict[TopicPartition, int]: ...

    async def revoking(self) -> None: ...


class Stored(Protocol):
    """Reads the group's stable positions. See ``TransactionalProducer.committed``."""

    def __call__(
        self, group_id: str, partitions: list[BrokerPartition], *, timeout_s: float
    ) -> Awaitable[dict[BrokerPartition, Committed]]: ...


class RequestConsumer(Consumer):  # type: ignore[misc]
    """The worker's consumer. ``Flow`` for the dispatcher."""

    _seeks = 0

    def _new_consumer_thread(self) -> _ReadCommittedThread:
        return _ReadCommittedThread(self, loop=self.loop, beacon=self.beacon)

    @property
    def _intake(self) -> RequestTransport:
        transport = self.transport
        assert isinstance(transport, RequestTransport)
        return transport

    async def subscribe(self, topics: Iterable[str]) -> None:
        """The agents' topics, and the dispatcher's."""
        await super().subscribe(set(topics) | self._intake.topics.keys())

    async def perform_seek(self) -> None:
        """Faust seeks to committed offsets; for requests, to the stable ones, told to the intake.

        Called once partitions are assigned and tables recovered, before anything is fetched.
        """
        self._seeks += 1
        await super().perform_seek()
        transport = self._intake
        mine = [tp for tp in self.assignment() if tp.topic in transport.topics]
        member = self.member()
        found = await transport.stored(
            member.group_id,
            [BrokerPartition(tp.topic, tp.partition) for tp in mine],
            timeout_s=self.app.conf.broker_request_timeout,
        )
        begins = await self.earliest_offsets(*mine)
        stored = {
            self._name(tp): found.get(
                BrokerPartition(tp.topic, tp.partition), Committed(begins[tp], "")
            )
            for tp in mine
        }
        opened = await transport.intake.opened(stored, member)
        transport.lag.assigned(opened)
        for partition, offset in opened.items():
            await self.seek(self._broker_name(partition), offset)

    async def on_partitions_revoked(self, revoked: AbstractSet[Any]) -> None:
        """The intake commits what it can while this member may still."""
        await self._intake.intake.revoking()
        self._intake.lag.revoked()
        await super().on_partitions_revoked(revoked)

    async def measure_ends(self) -> None:
        """Ask where the owned partitions of the request topics end, for ``RequestTransport.lag``.

        What fetches bring along would not do: of a partition that rests under back-pressure,
        nothing is fetched. Raises aiokafka's KafkaError.
        """
        lag = self._intake.lag
        mine = [self._broker_name(partition) for partition in lag.partitions]
        if mine:
            ends = await self.highwaters(*mine)
            lag.ended({self._name(TP(*tp)): end for tp, end in ends.items()})

    async def getmany(self, timeout: float) -> AsyncIterator[tuple[Any, Any]]:
        """As Faust's, for all but the dispatcher's topics, whose batches are handed over here."""
        seeks, began = self._seeks, time.monotonic()
        fetched, active = await self._wait_next_records(POLL_S)
        generation = self.app.consumer_generation_id
        # What was fetched while the flow was stopped is fetched again: perform_seek comes first.
        if not fetched or self.should_stop or not self.flow_active:
            return
        transport = self._intake
        took_s = time.monotonic() - began
        count_polled(fetched, took_s, prefix=transport.prefix, group=self.app.conf.id)
        others = {}
        for partition, records in fetched.items():
            tp = ensure_TP(partition)
            if tp.topic not in transport.topics:
                others[partition] = records
            elif seeks != self._seeks:
                # From before or after that seek? A record passed over would be lost: read again.
                following = transport.intake.next_offset(self._name(tp))
                if following is not None:
                    await self.seek(tp, following)
            elif active is None or tp in active or tp in self._buffered_partitions:
                name = transport.topics[tp.topic]
                transport.intake.take(self._name(tp), [_record(name, each) for each in records])
        transport.intake.pump()
        for tp, record in self.scheduler.iterate(others):
            if not self.flow_active or self.app.consumer_generation_id != generation:
                return
            if active is None or tp in active or tp in self._buffered_partitions:
                yield tp, self._to_message(tp, record)

    def member(self) -> GroupMember:
        """Who this consumer is in its group now."""
        coordinator = self._thread._ensure_consumer()._coordinator
        return GroupMember(self.app.conf.id, coordinator.generation, coordinator.member_id)

    def pause(self, partition: TopicPartition) -> None:
        """Stop fetching it."""
        self.on_buffer_full(self._broker_name(partition))

    def resume(self, partition: TopicPartition) -> None:
        """Fetch it again."""
        self.on_buffer_drop(self._broker_name(partition))

    def _name(self, tp: TP) -> TopicPartition:
        return TopicPartition(self._intake.topics[tp.topic], tp.partition)

    def _broker_name(self, partition: TopicPartition) -> TP:
        return TP(self._intake.prefix + partition.topic, partition.partition)


class _ReadCommittedThread(AIOKafkaConsumerThread):  # type: ignore[misc]
    """Faust reads uncommitted records unless it runs its own transactions."""

    def _create_worker_consumer(self, transport: Any) -> Any:
        consumer = super()._create_worker_consumer(transport)
        # Used when the consumer starts; Faust passes fixed values on.
        consumer._isolation_level = "read_committed"
        consumer._fetch_max_wait_ms = FETCH_WAIT_MS
        return consumer

    async def _fetch_records(
        self, consumer: Any, active_partitions: AbstractSet[Any] | None, **options: Any
    ) -> Any:
        """Fetch nothing of a partition that is not active.

        Faust leaves such records (a table's changelog, once it is recovered) with aiokafka, which
        then fetches nothing from that broker for 100 ms, hoping that somebody takes them.
        """
        if active_partitions is not None and self.consumer.flow_active:
            wanted = frozenset(active_partitions)
            paused = consumer.paused()
            consumer.pause(*(consumer.assignment() - wanted - paused))
            # Faust's class of a partition is equal to aiokafka's, but not accepted by it.
            consumer.resume(*(partition for partition in paused if partition in wanted))
        return await super()._fetch_records(consumer, active_partitions, **options)


class RequestTransport(Transport):  # type: ignore[misc]
    """Makes the consumer above. ``topics``: broker names of the request topics to our names."""

    Consumer = RequestConsumer

    def __init__(
        self, url: Any, app: Any, *, prefix: str, topics: Iterable[str], stored: Stored
    ) -> None:
        super().__init__(url, app)
        self.prefix = prefix
        self.topics = {prefix + topic: topic for topic in topics}
        self.stored = stored
        self.lag = PartitionLag()
        self.intake: Intake


def _record(topic: str, fetched: Any) -> Record:
    return Record(
        topic=topic,
        partition=fetched.partition,
        offset=fetched.offset,
        timestamp_ms=fetched.timestamp or 0,
        key=fetched.key,
        value=fetched.value,
        headers=tuple((name, value or b"") for name, value in fetched.headers),
    )
