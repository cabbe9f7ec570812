"""Lag by partition, and a frame of `feedloom top`, as the broker tells them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, suppress

import pytest

from infra.contracts import catalogue, codec
from infra.contracts.bus import TopicPartition
from infra.contracts.events.platform import WorkerStatusReported
from infra.kafka.bus import KafkaBus
from infra.kafka.offsets import OffsetsUnknown
from infra.kafka.partition_lag import GroupReport, GroupsLag
from infra.kafka.topic_sizes import TopicSizes
from infra.settings import KafkaSettings, Settings
from infra.terminal.top_feed import TopFeed

pytestmark = pytest.mark.kafka

TOPIC = catalogue.REQUESTS.name
OTHER = catalogue.REQUESTS_BATCH.name
LETTERS = catalogue.dead_letter_topic(catalogue.REQUESTS).name


@pytest.fixture
def lag(kafka_settings: KafkaSettings) -> Iterator[GroupsLag]:
    with closing(GroupsLag(kafka_settings, {"workers": [TOPIC, OTHER], "nobody": []})) as measured:
        yield measured


def measured(lag: GroupsLag) -> list[GroupReport]:
    """A broker makes the topic of offsets when it is first asked for a group: not known yet."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with suppress(OffsetsUnknown):
            return lag.measure()
    return lag.measure()


def publish(bus: KafkaBus, topic: str, *partitions: int) -> None:
    with closing(bus.publisher()) as publisher:
        for partition in partitions:
            publisher.publish(topic, key=b"k", value=b"v", partition=partition)


def test_a_partition_says_its_lag_its_reader_and_when_it_moved(
    kafka_bus: KafkaBus, lag: GroupsLag
) -> None:
    publish(kafka_bus, TOPIC, 0, 0, 0, 1)
    before_ms = time.time_ns() // 1_000_000
    with closing(kafka_bus.reader([TOPIC], group="workers")) as reader:
        while not reader.poll(0.2):
            pass
        reader.commit({TopicPartition(TOPIC, 0): 2})
        workers, nobody = measured(lag)
        assert (workers.state, workers.members, workers.lag) == ("Stable", 1, 2)
        assert workers.times_known
        rows = {(one.topic, one.partition): one for one in workers.partitions}
        first, second = rows[TOPIC, 0], rows[TOPIC, 1]
        assert (first.committed, first.end, first.lag) == (2, 3, 1)
        # The broker's clock is this machine's; it may round.
        assert first.moved_ms is not None
        assert before_ms - 1000 <= first.moved_ms <= time.time_ns() // 1_000_000 + 1000
        assert (second.committed, second.lag, second.moved_ms) == (None, 1, None)
        assert first.owner.startswith("feedloom-")
        assert first.owner == second.owner
        # Of what nobody reads, too.
        assert (rows[OTHER, 0].lag, rows[OTHER, 0].owner) == (0, "")
        assert (nobody.state, nobody.partitions) == ("Dead", ())
        # An offset that is stored again has not moved; one that is another has.
        moved_ms = first.moved_ms
        reader.commit({TopicPartition(TOPIC, 0): 2, TopicPartition(TOPIC, 1): 1})
        again = {(one.topic, one.partition): one for one in lag.measure()[0].partitions}
        assert again[TOPIC, 0].moved_ms == moved_ms
        assert again[TOPIC, 1].moved_ms is not None
    gone = lag.measure()[0]
    assert (gone.state, gone.members) == ("Empty", 0)


def test_a_topic_has_as_many_records_as_were_written(
    kafka_bus: KafkaBus, kafka_settings: KafkaSettings
) -> None:
    publish(kafka_bus, LETTERS, 0, 0)
    with closing(TopicSizes(kafka_settings, [LETTERS, "no.such.topic"])) as sizes:
        assert sizes.measure() == {LETTERS: 2}


def test_a_frame_holds_what_was_written_before_and_since(
    kafka_bus: KafkaBus, kafka_settings: KafkaSettings
) -> None:
    publish(kafka_bus, TOPIC, 0, 1)
    publish(kafka_bus, LETTERS, 0)

    def report(worker_id: str) -> None:
        event = WorkerStatusReported(
            worker_id=worker_id,
            state="ready",
            versions={"default": "1"},
            reported_at_ms=time.time_ns() // 1_000_000,
        )
        with closing(kafka_bus.publisher()) as publisher:
            publisher.publish(
                catalogue.WORKERS.name, key=worker_id.encode(), value=codec.encode(event)
            ).result(30)

    report("w1")
    settings = Settings(kafka=kafka_settings)
    with closing(TopFeed(kafka_bus, settings, window_s=60)) as feed:
        deadline = time.monotonic() + 30
        frame = feed.poll()
        while not frame.lag and time.monotonic() < deadline:
            frame = feed.poll()  # the topic of offsets is being made
        assert [one.worker_id for one in frame.workers] == ["w1"]
        assert {one.topic: one.lag for one in frame.lag}[TOPIC] == 2
        assert frame.dead_letters == {LETTERS: 1}
        report("w2")
        while len(frame.workers) < 2 and time.monotonic() < deadline:
            frame = feed.poll()
        assert [one.worker_id for one in frame.workers] == ["w1", "w2"]
