"""Results and offsets in one transaction on the real broker: all, nothing, the owner only."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import aiokafka
import pytest
import pytest_asyncio
from aiokafka.errors import ProducerFenced
from aiokafka.structs import TopicPartition
from kafka.admin import NewTopic

from infra.contracts.bus import read_to_end
from infra.contracts.catalogue import REQUESTS, RESULTS
from infra.kafka.bus import KafkaBus
from infra.kafka.connection import admin_client
from infra.settings import KafkaSettings
from stream_workers.transactions import (
    Committed,
    GroupMember,
    Outgoing,
    OwnershipLost,
    TransactionalProducer,
    TransactionFailed,
    TransactionsFenced,
)

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(120)]


class Group:
    """A real member of a real group, and the topics of this test."""

    def __init__(self, settings: KafkaSettings) -> None:
        self.servers = settings.bootstrap_servers
        self.group_id = settings.topic_prefix + "group"
        self.results = settings.topic_prefix + RESULTS.name
        self.requests = settings.topic_prefix + REQUESTS.name
        self.partition = TopicPartition(self.requests, 0)
        self.members: list[aiokafka.AIOKafkaConsumer] = []

    async def join(self) -> aiokafka.AIOKafkaConsumer:
        consumer = aiokafka.AIOKafkaConsumer(
            self.requests,
            bootstrap_servers=self.servers,
            group_id=self.group_id,
            enable_auto_commit=False,
            session_timeout_ms=6000,
        )
        self.members.append(consumer)
        await consumer.start()
        return consumer

    def member(self, consumer: aiokafka.AIOKafkaConsumer) -> GroupMember:
        coordinator = consumer._coordinator
        return GroupMember(self.group_id, coordinator.generation, coordinator.member_id)

    async def producer(self, name: str, timeout_s: float = 10) -> TransactionalProducer:
        producer = TransactionalProducer(
            transactional_id=f"{self.group_id}.{name}",
            timeout_s=timeout_s,
            client_options={"bootstrap_servers": self.servers},
        )
        await producer.start()
        return producer


@pytest_asyncio.fixture
async def group(kafka_settings: KafkaSettings) -> AsyncIterator[Group]:
    made = Group(kafka_settings)
    yield made
    for member in made.members:
        await member.stop()


@pytest_asyncio.fixture
async def producer(group: Group) -> AsyncIterator[TransactionalProducer]:
    made = await group.producer("w1")
    yield made
    await made.stop()


def read(bus: KafkaBus, topic: str = RESULTS.name) -> list[bytes | None]:
    return [record.value for record in read_to_end(bus, topic)]


async def test_records_and_offsets_are_written_together(
    group: Group, producer: TransactionalProducer, kafka_bus: KafkaBus
) -> None:
    consumer = await group.join()
    member = group.member(consumer)
    assert await producer.committed(group.group_id, [group.partition], timeout_s=10) == {}
    for number in range(3):
        records = [Outgoing(group.results, b"k", b"%d%d" % (number, i)) for i in range(4)]
        await producer.commit(records, {group.partition: Committed(number, f"m{number}")}, member)
    stored = await producer.committed(group.group_id, [group.partition], timeout_s=10)
    assert stored == {group.partition: Committed(2, "m2")}
    assert len(await asyncio.to_thread(read, kafka_bus)) == 12


async def test_a_member_that_lost_its_partitions_writes_nothing(
    group: Group, producer: TransactionalProducer, kafka_bus: KafkaBus
) -> None:
    first = await group.join()
    old = group.member(first)
    await producer.commit([], {group.partition: Committed(1, "")}, old)
    await group.join()
    while group.member(first).generation == old.generation:  # noqa: ASYNC110 - its heartbeat tells
        await asyncio.sleep(0.05)
    result = Outgoing(group.results, b"k", b"from a zombie")
    with pytest.raises(OwnershipLost):
        await producer.commit([result], {group.partition: Committed(5, "")}, old)
    unknown = old._replace(member_id="nobody")
    with pytest.raises(OwnershipLost):
        await producer.commit([result], {group.partition: Committed(5, "")}, unknown)
    assert await asyncio.to_thread(read, kafka_bus) == []
    # The producer still works for a member in good standing.
    await producer.commit(
        [Outgoing(group.results, b"k", b"fine")],
        {group.partition: Committed(2, "")},
        group.member(first),
    )
    stored = await producer.committed(group.group_id, [group.partition], timeout_s=10)
    assert stored[group.partition].offset == 2
    assert await asyncio.to_thread(read, kafka_bus) == [b"fine"]


async def test_a_record_that_cannot_be_written_takes_the_offsets_back(
    group: Group, producer: TransactionalProducer
) -> None:
    consumer = await group.join()
    too_large = Outgoing(group.results, b"k", b"x" * 2_000_000)
    with pytest.raises(TransactionFailed, match="larger than"):
        await producer.commit(
            [too_large], {group.partition: Committed(9, "")}, group.member(consumer)
        )
    assert await producer.committed(group.group_id, [group.partition], timeout_s=10) == {}


async def test_what_follows_a_record_that_the_broker_refused_is_written(
    group: Group,
    producer: TransactionalProducer,
    kafka_bus: KafkaBus,
    kafka_settings: KafkaSettings,
) -> None:
    """It counts batches, and takes none behind one that it did not take."""
    consumer = await group.join()
    # From its first moment: a broker takes a while to heed a setting that is changed later.
    small = NewTopic(
        kafka_settings.topic_prefix + "small", 1, 1, topic_configs={"max.message.bytes": "2000"}
    )
    with admin_client(kafka_settings) as admin:
        admin.create_topics([small])

    async def commit(value: bytes) -> None:
        await producer.commit([Outgoing(small.name, b"k", value)], {}, group.member(consumer))

    await commit(b"first")
    with pytest.raises(TransactionFailed, match="TooLarge"):
        await commit(b"x" * 5_000)
    with pytest.raises(TransactionFailed, match="OutOfOrderSequence"):
        await commit(b"second")
    await commit(b"second")
    assert await asyncio.to_thread(read, kafka_bus, "small") == [b"first", b"second"]


async def test_a_transaction_that_took_too_long_is_rolled_back_and_the_next_one_goes_on(
    group: Group, kafka_bus: KafkaBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a broker dies: the coordinator gives the transaction up, and its producer's epoch."""
    producer = await group.producer("slow", timeout_s=1)
    consumer = await group.join()
    member = group.member(consumer)
    commit = producer._producer.commit_transaction

    async def late() -> None:
        # Offsets are stable again once the broker has rolled back what they belong to.
        await producer.committed(group.group_id, [group.partition], timeout_s=60)
        await commit()

    monkeypatch.setattr(producer._producer, "commit_transaction", late)
    records = [Outgoing(group.results, b"k", b"once")]
    with pytest.raises(TransactionFailed):
        await producer.commit(records, {group.partition: Committed(3, "")}, member)
    assert await producer.committed(group.group_id, [group.partition], timeout_s=10) == {}
    await producer.commit(records, {group.partition: Committed(3, "")}, member)
    stored = await producer.committed(group.group_id, [group.partition], timeout_s=10)
    assert stored[group.partition].offset == 3
    assert await asyncio.to_thread(read, kafka_bus) == [b"once"]
    await producer.stop()


async def test_a_second_process_of_the_same_id_fences_the_first_and_ends_its_transaction(
    group: Group, producer: TransactionalProducer, kafka_bus: KafkaBus
) -> None:
    consumer = await group.join()
    member = group.member(consumer)
    # The first one dies in the middle: records written, offsets pending, nothing committed.
    await producer._producer.begin_transaction()
    await producer._producer.send_and_wait(group.results, b"half", key=b"k")
    producer._sender.member = member
    await producer._producer.send_offsets_to_transaction({group.partition: 7}, group.group_id)
    late = await group.producer("other")
    with pytest.raises(TransactionFailed, match="did not become stable"):
        await late.committed(group.group_id, [group.partition], timeout_s=0.3)
    heir = await group.producer("w1")
    assert await late.committed(group.group_id, [group.partition], timeout_s=10) == {}
    with pytest.raises(ProducerFenced):
        await producer._producer.commit_transaction()
    with pytest.raises(TransactionsFenced, match="same worker_id"):
        await producer.commit([], {group.partition: Committed(7, "")}, member)
    await heir.commit(
        [Outgoing(group.results, b"k", b"whole")], {group.partition: Committed(7, "")}, member
    )
    assert await asyncio.to_thread(read, kafka_bus) == [b"whole"]
    for one in (late, heir):
        await one.stop()
