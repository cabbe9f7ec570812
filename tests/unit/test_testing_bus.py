"""The in-memory bus where it must behave as Kafka does, beyond the contract suite."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from infra.contracts.bus import TopicPartition
from infra.testing import InMemoryBus, InMemoryReader, ManualClock, murmur2


# Apache Kafka's own vectors: UtilsTest.testMurmur2, as unsigned numbers.
@pytest.mark.parametrize(
    ("key", "signed"),
    [
        (b"21", -973932308),
        (b"foobar", -790332482),
        (b"a-little-bit-long-string", -985981536),
        (b"a-little-bit-longer-string", -1486304829),
        (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        (b"abc", 479470107),
    ],
)
def test_keys_hash_as_in_kafka(key: bytes, signed: int) -> None:
    assert murmur2(key) == signed & 0xFFFFFFFF


def filled(topics: dict[str, int]) -> InMemoryBus:
    bus = InMemoryBus(topics)
    publisher = bus.publisher()
    for topic, count in topics.items():
        for partition in range(count):
            value = f"{topic}{partition}".encode()
            publisher.publish(topic, key=None, value=value, partition=partition).result(0)
    return bus


def values(reader: InMemoryReader) -> set[bytes | None]:
    return {record.value for record in reader.poll(0)}


def test_members_of_a_group_share_and_a_leaver_is_replaced() -> None:
    bus = filled({"a": 4})
    one, two = bus.reader(["a"], group="g"), bus.reader(["a"], group="g")
    first, second = values(one), values(two)
    assert first | second == {b"a0", b"a1", b"a2", b"a3"}
    assert not first & second
    # Nothing was committed, so whoever stays reads the leaver's share again.
    one.close()
    assert values(two) == first


def test_a_member_only_gets_topics_it_asked_for() -> None:
    bus = filled({"a": 2, "b": 2})
    both, only_b = bus.reader(["a", "b"], group="g"), bus.reader(["b"], group="g")
    narrow = values(only_b)
    assert narrow <= {b"b0", b"b1"}
    assert values(both) | narrow == {b"a0", b"a1", b"b0", b"b1"}


def test_a_waiting_reader_is_woken_by_a_record() -> None:
    bus = InMemoryBus({"a": 1})
    reader = bus.reader(["a"])
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(reader.poll, 60)
        bus.publisher().publish("a", key=b"k", value=b"v")
        assert [record.value for record in waiting.result(30)] == [b"v"]


def test_records_of_many_threads_have_gapless_offsets() -> None:
    bus = InMemoryBus({"a": 1})

    def publish(number: int) -> int:
        publisher = bus.publisher()
        return publisher.publish("a", key=b"k", value=b"%d" % number).result(0).offset

    with ThreadPoolExecutor(8) as pool:
        offsets = list(pool.map(publish, range(400)))
    assert sorted(offsets) == list(range(400))
    assert [record.offset for record in bus.records("a")] == list(range(400))


def test_max_records_bounds_a_poll_and_loses_nothing() -> None:
    bus = filled({"a": 5})
    reader = bus.reader(["a"])
    polls = [reader.poll(0, max_records=2) for _ in range(4)]
    assert [len(found) for found in polls] == [2, 2, 1, 0]


def test_a_partition_that_is_not_there_is_the_futures_error() -> None:
    bus = InMemoryBus({"a": 1})
    for topic, partition in (("a", 1), ("a", -1), ("nowhere", 0)):
        future = bus.publisher().publish(topic, key=None, value=b"", partition=partition)
        assert future.exception(0) is not None


def test_what_kafka_refuses_is_refused() -> None:
    bus = filled({"a": 2})
    reader = bus.reader(["a"], partitions=[0])
    with pytest.raises(RuntimeError, match="not assigned"):
        reader.seek(TopicPartition("a", 1), 0)
    reader.close()
    with pytest.raises(RuntimeError, match="closed"):
        reader.poll(0)
    with pytest.raises(ValueError, match="not both"):
        bus.reader(["a"], group="g", partitions=[0])


def test_the_clock_moves_only_when_told_and_only_forward() -> None:
    clock = ManualClock(10.0)
    assert (clock(), clock()) == (10.0, 10.0)
    clock.advance(2.5)
    assert clock() == 12.5
    with pytest.raises(ValueError, match="backwards"):
        clock.advance(-1)
