"""Faust's consumer, extended: request topics go to a dispatcher in whole batches.

Faust delivers each message through a conductor, a queue and a stream iterator, with several tasks
and locks a message, and acks each through counters that miscount (faust-streaming 606). Requests
need none of it: they are not joined, they end in any order, and their offsets are committed in
the transactions that hold their results. So the consumer hands them over as they were fetched.

Records of every other topic go to Faust's agents, but what of them may be committed is told by an
``OffsetTracker``: Faust's own lists pass over a single record that no agent got. And agents get
nothing between the revocation of partitions and the seek behind their assignment, as all of that
comes again. Group membership, rebalancing and the recovery of tables stay Faust's.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import asynccontextmanager
from typing import Any, Protocol

from aiokafka.structs import TopicPartition as BrokerPartition
from faust.transport.consumer import ensure_TP
from faust.transport.drivers.aiokafka import Consumer, Transport
from faust.types import TP

from infra.contracts.bus import Record, TopicPartition
from observability.messaging import count_polled
from stream_workers.consumer_thread import ConsumerThread, Hold
from stream_workers.lag import PartitionLag
from stream_workers.offsets import OffsetTracker
from stream_workers.transactions import Committed, GroupMember

POLL_S = 0.1
"""How long one fetch may keep a partition that was resumed meanwhile waiting."""


class Intake(Protocol):
    """Who takes the requests. See ``dispatcher.Dispatcher``."""

    def take(self, partition: TopicPartition, records: Iterable[Record]) -> None: ...

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
    """The worker's consumer. ``Flow`` for the dispatcher.

    ``sought``: its partitions are read from where they are committed.
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._seeks = 0
        self._revocations = 0
        self.sought = False
        # Of the agents' partitions, once sought.
        self._trackers: dict[TP, OffsetTracker] = {}

    def _new_consumer_thread(self) -> ConsumerThread:
        return ConsumerThread(self, loop=self.loop, beacon=self.beacon)

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

        Called once partitions are assigned and tables recovered.
        """
        async with self._seeking():
            await self._perform_seek()

    async def seek_wait(self, partitions: Mapping[TP, int]) -> None:
        """As Faust's, which begins to read a table's changelog so."""
        async with self._seeking():
            await super().seek_wait(partitions)

    @asynccontextmanager
    async def _seeking(self) -> AsyncIterator[None]:
        """Nothing is fetched meanwhile, and what was fetched before is dropped: it comes again.

        Faust cancels who waits for a fetch when partitions move, but not the fetch: that would take
        records behind the seek, and nobody would get them.
        """
        self._seeks += 1
        hold = Hold()
        try:
            # Within, as it takes hold even if who waits for it is cancelled.
            await self._thread.hold(hold)
            yield
        finally:
            hold.release()

    async def _perform_seek(self) -> None:
        revocations = self._revocations
        await super().perform_seek()
        transport = self._intake
        mine = [tp for tp in self.assignment() if tp.topic in transport.topics]
        changelogs = self.app.tables.changelog_topics
        agents = [tp for tp in self.assignment() if not (tp in mine or tp.topic in changelogs)]
        # aiokafka seeks only where something is committed, and may have passed records already.
        fresh = [tp for tp in agents if not self._read_offset.get(tp)]
        member = self.member()
        found = await transport.stored(
            member.group_id,
            [BrokerPartition(tp.topic, tp.partition) for tp in mine],
            timeout_s=self.app.conf.broker_request_timeout,
        )
        begins = await self.earliest_offsets(*mine, *fresh)
        for tp in fresh:
            await self.seek(tp, begins[tp])
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
        # Faust may go on with what it did for partitions that have moved on meanwhile.
        self.sought = revocations == self._revocations
        if self.sought:
            self._trackers = {tp: OffsetTracker() for tp in agents}

    async def on_partitions_revoked(self, revoked: AbstractSet[Any]) -> None:
        """The intake commits what it can while this member may still."""
        self._revocations += 1
        self.sought = False
        self._trackers = {}
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
        began = time.monotonic()
        fetched, active = await self._wait_next_records(POLL_S)
        generation, seeks = self.app.consumer_generation_id, self._seeks
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
            elif active is None or tp in active or tp in self._buffered_partitions:
                name = transport.topics[tp.topic]
                transport.intake.take(self._name(tp), [_record(name, each) for each in records])
        transport.intake.pump()
        for tp, record in self.scheduler.iterate(others):
            moved = self.app.consumer_generation_id != generation or seeks != self._seeks
            if moved or not self.flow_active:
                return
            if active is None or tp in active or tp in self._buffered_partitions:
                message = self._to_message(tp, record)
                if self._deliver(message):
                    yield tp, message

    def _deliver(self, message: Any) -> bool:
        """Whether an agent gets it, or a table that is being recovered."""
        tracker = self._trackers.get(message.tp)
        if tracker is not None:
            return tracker.deliver(message.offset)
        return message.topic in self.app.tables.changelog_topics

    def ack(self, message: Any) -> bool:
        """Faust's hook: an agent is done with it, and what came of it is written."""
        if message.acked:
            return False
        message.acked = True
        self._unacked_messages.discard(message)
        self._n_acked += 1
        tracker = self._trackers.get(message.tp)
        return tracker is not None and tracker.finish(message.offset)

    def _filter_tps_with_pending_acks(self, topics: Any = None) -> Iterator[TP]:
        """Faust's hook: where there may be something to commit."""
        return (tp for tp in self._trackers if topics is None or tp in topics or tp.topic in topics)

    def _new_offset(self, tp: TP) -> int | None:
        """Faust's hook: what to commit, if it is not committed yet."""
        return self._trackers[tp].base

    async def _add_gap(self, tp: TP, offset_from: int, offset_to: int) -> None:
        """Faust's hook, for its own lists."""

    async def _getmany(self, active_partitions: AbstractSet[Any] | None, timeout: float) -> Any:
        """Faust's hook: one fetch, once the flow goes."""
        seeks = self._seeks
        fetched = await self._thread.getmany(active_partitions, timeout)
        return fetched if seeks == self._seeks else {}

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
