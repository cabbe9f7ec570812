"""What every bus does, the one in memory and the one on Kafka."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from infra.contracts.bus import (
    Bus,
    Reader,
    Record,
    TopicPartition,
    read_since,
    read_to_end,
    unread,
)
from infra.contracts.catalogue import FEEDBACK, REGISTRY
from infra.contracts.errors import ConfigurationError
from infra.testing import InMemoryBus

TOPIC = FEEDBACK.name


@pytest.fixture(params=["memory", pytest.param("kafka", marks=pytest.mark.kafka)])
def bus(request: pytest.FixtureRequest) -> Bus:
    if request.param == "memory":
        return InMemoryBus({TOPIC: 3, REGISTRY.name: 1})
    chosen: Bus = request.getfixturevalue("kafka_bus")
    return chosen


def publish(bus: Bus, *values: bytes, key: bytes | None = b"k") -> None:
    publisher = bus.publisher()
    futures = [publisher.publish(TOPIC, key=key, value=value) for value in values]
    publisher.close()
    for future in futures:
        future.result(0)


def read(reader: Reader, count: int, timeout_s: float = 30) -> list[Record]:
    found: list[Record] = []
    deadline = time.monotonic() + timeout_s
    while len(found) < count and time.monotonic() < deadline:
        found.extend(reader.poll(0.2))
    return found


def test_a_record_comes_back_as_it_was_written(bus: Bus) -> None:
    publisher = bus.publisher()
    headers = [("traceparent", b"00-1"), ("twice", b"1"), ("twice", b"2")]
    position = publisher.publish(TOPIC, key=b"k", value=b"\x00\xff", headers=headers).result(30)
    publisher.close()
    reader = bus.reader([TOPIC])
    (record,) = read(reader, 1)
    reader.close()
    assert (record.key, record.value, record.headers) == (b"k", b"\x00\xff", tuple(headers))
    assert (record.topic, record.partition, record.offset) == (
        position.topic,
        position.partition,
        position.offset,
    )


def test_one_key_keeps_one_partition_and_its_order(bus: Bus) -> None:
    values = [str(number).encode() for number in range(50)]
    publish(bus, *values)
    reader = bus.reader([TOPIC])
    records = read(reader, 50)
    reader.close()
    assert [record.value for record in records] == values
    assert len({record.partition for record in records}) == 1


@pytest.mark.parametrize("key", [b"", b"a", b"ab", b"abc", b"abcd", b"request-17", b"\xff" * 9])
def test_keys_choose_the_same_partition_everywhere(bus: Bus, key: bytes) -> None:
    known = {b"": 0, b"a": 1, b"ab": 2, b"abc": 0, b"abcd": 2, b"request-17": 2, b"\xff" * 9: 2}
    publisher = bus.publisher()
    position = publisher.publish(TOPIC, key=key, value=b"v").result(30)
    publisher.close()
    assert position.partition == known[key]


def test_a_tombstone_has_no_value(bus: Bus) -> None:
    publisher = bus.publisher()
    publisher.publish(TOPIC, key=b"k", value=None).result(30)
    publisher.close()
    reader = bus.reader([TOPIC])
    assert read(reader, 1)[0].value is None
    reader.close()


def test_latest_starts_where_the_topic_ended_when_the_reader_was_made(bus: Bus) -> None:
    publish(bus, b"before")
    reader = bus.reader([TOPIC], start="latest")
    publish(bus, b"after")
    assert [record.value for record in read(reader, 1)] == [b"after"]
    reader.close()


def test_a_reader_can_take_one_partition(bus: Bus) -> None:
    publisher = bus.publisher()
    for partition in range(3):
        publisher.publish(TOPIC, key=None, value=b"%d" % partition, partition=partition)
    publisher.close()
    reader = bus.reader([TOPIC], partitions=[1])
    assert [record.value for record in read(reader, 1)] == [b"1"]
    assert not reader.poll(0.3)
    reader.close()


def test_a_reader_can_take_other_partitions_of_each_topic_since_a_moment(bus: Bus) -> None:
    publisher = bus.publisher()
    publisher.publish(TOPIC, key=None, value=b"old", partition=1)
    publisher.publish(REGISTRY.name, key=b"m", value=b"old")
    publisher.flush(30)
    before = bus.reader([TOPIC, REGISTRY.name])
    moment = max(record.timestamp_ms for record in read(before, 2)) + 1
    before.close()
    while time.time_ns() // 1_000_000 <= moment:
        pass
    for partition in range(3):
        publisher.publish(TOPIC, key=None, value=b"%d" % partition, partition=partition)
    publisher.close()
    reader = bus.reader([TOPIC, REGISTRY.name], partitions={TOPIC: [1, 2], REGISTRY.name: [0]})
    ends = reader.seek_since(moment)
    assert ends == {
        TopicPartition(TOPIC, 1): 2,
        TopicPartition(TOPIC, 2): 1,
        TopicPartition(REGISTRY.name, 0): 1,
    }
    assert {record.value for record in read(reader, 2)} == {b"1", b"2"}
    assert not reader.poll(0.3)
    assert not unread(reader, ends)
    reader.close()
    grouped = bus.reader([TOPIC], group="since")
    with pytest.raises(RuntimeError, match="group"):
        grouped.seek_since(0)
    grouped.close()


def test_a_group_goes_on_from_its_commit(bus: Bus) -> None:
    publish(bus, b"1", b"2", b"3")
    first = bus.reader([TOPIC], group="g")
    records = read(first, 3)
    position = TopicPartition(TOPIC, records[0].partition)
    first.commit({position: records[1].offset + 1})
    first.close()
    second = bus.reader([TOPIC], group="g")
    assert [record.value for record in read(second, 1)] == [b"3"]
    second.close()


def test_seek_reads_again(bus: Bus) -> None:
    publish(bus, b"1", b"2")
    reader = bus.reader([TOPIC])
    records = read(reader, 2)
    reader.seek(TopicPartition(TOPIC, records[0].partition), records[1].offset)
    assert [record.value for record in read(reader, 1)] == [b"2"]
    reader.close()


def test_a_position_follows_what_was_read(bus: Bus) -> None:
    publish(bus, b"1", b"2", b"3")
    reader = bus.reader([TOPIC])
    records = read(reader, 3)
    where = TopicPartition(TOPIC, records[0].partition)
    assert reader.position(where) == 3
    reader.seek(where, 1)
    assert reader.position(where) == 1
    reader.close()


def test_a_topic_is_read_to_its_present_end(bus: Bus) -> None:
    publish(bus, b"1", b"2")
    publish(bus, b"3", key=b"another")
    assert {record.value for record in read_to_end(bus, TOPIC)} == {b"1", b"2", b"3"}
    assert read_to_end(bus, REGISTRY.name) == []


def test_offsets_are_found_by_time(bus: Bus) -> None:
    publish(bus, b"1", b"2")
    reader = bus.reader([TOPIC])
    first = read(reader, 2)[0]
    reader.close()
    where = TopicPartition(TOPIC, first.partition)
    assert bus.offsets_since(TOPIC, first.timestamp_ms)[where] == 0
    later = bus.offsets_since(TOPIC, first.timestamp_ms + 3_600_000)
    assert later == bus.end_offsets(TOPIC)


def test_a_topic_is_read_from_a_moment_to_its_present_end(bus: Bus) -> None:
    publish(bus, b"1", b"2")
    publish(bus, b"3", key=b"another")
    first = min(record.timestamp_ms for record in read_to_end(bus, TOPIC))
    records = read_since(bus, TOPIC, first)
    seen = [next(records).value]
    publish(bus, b"4")
    seen += [record.value for record in records]
    assert sorted(value or b"" for value in seen) == [b"1", b"2", b"3"]
    assert list(read_since(bus, TOPIC, first + 3_600_000)) == []


def test_end_offsets_count_every_partition(bus: Bus) -> None:
    publish(bus, b"1", b"2")
    ends = bus.end_offsets(TOPIC)
    assert set(ends) == {TopicPartition(TOPIC, index) for index in range(3)}
    assert sorted(ends.values()) == [0, 0, 2]


@pytest.mark.parametrize(
    "use",
    [
        lambda bus: bus.reader(["no.such.topic"]),
        lambda bus: bus.end_offsets("no.such.topic"),
    ],
)
def test_a_missing_topic_is_named(bus: Bus, use: Callable[[Bus], object]) -> None:
    with pytest.raises(ConfigurationError, match=r"no\.such\.topic"):
        use(bus)


def test_without_a_group_there_is_nothing_to_commit_to(bus: Bus) -> None:
    reader = bus.reader([TOPIC])
    with pytest.raises(RuntimeError, match="without a group"):
        reader.commit({TopicPartition(TOPIC, 0): 1})
    reader.close()


def test_closing_twice_is_harmless(bus: Bus) -> None:
    reader, publisher = bus.reader([TOPIC]), bus.publisher()
    for _ in range(2):
        reader.close()
        publisher.close()
