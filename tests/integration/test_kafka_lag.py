"""How far the workers' group is behind, as the broker counts it."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest
from kafka import TopicPartition as KafkaPartition

from infra.contracts import catalogue
from infra.contracts.bus import TopicPartition
from infra.contracts.errors import ConfigurationError
from infra.kafka.bus import KafkaBus
from infra.kafka.connection import admin_client
from infra.kafka.lag import GroupLag
from infra.kafka.offsets import OffsetsUnknown
from infra.settings import KafkaSettings

pytestmark = pytest.mark.kafka

TOPIC = catalogue.REQUESTS.name
GROUP = "workers"


@pytest.fixture
def lag(kafka_settings: KafkaSettings) -> Iterator[GroupLag]:
    measured = GroupLag(kafka_settings, group=GROUP, topic=TOPIC)
    yield measured
    measured.close()


def measured(lag: GroupLag) -> int:
    """A broker makes the topic of offsets when it is first asked for a group: not known yet."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with suppress(OffsetsUnknown):
            return lag.measure()
    return lag.measure()


def publish(bus: KafkaBus, *partitions: int) -> None:
    publisher = bus.publisher()
    for partition in partitions:
        publisher.publish(TOPIC, key=b"k", value=b"v", partition=partition)
    publisher.close()


def commit(bus: KafkaBus, settings: KafkaSettings, offsets: dict[int, int]) -> None:
    """As the worker does: its group bears the deployment's prefix."""
    reader = bus.reader([TOPIC], group=GROUP)
    # The group must know its member before it takes offsets from it.
    while not reader.poll(0.2):
        pass
    reader.commit({TopicPartition(TOPIC, one): offset for one, offset in offsets.items()})
    reader.close()


def test_an_empty_topic_has_no_lag_and_a_new_group_all_of_it(
    kafka_bus: KafkaBus, lag: GroupLag
) -> None:
    assert measured(lag) == 0
    publish(kafka_bus, 0, 0, 1)
    assert lag.measure() == 3


def test_what_the_group_has_committed_does_not_count(
    kafka_bus: KafkaBus, kafka_settings: KafkaSettings, lag: GroupLag
) -> None:
    publish(kafka_bus, 0, 0, 0, 1, 1, 2)
    commit(kafka_bus, kafka_settings, {0: 1, 1: 2})
    assert lag.measure() == 2 + 0 + 1
    other = GroupLag(kafka_settings, group="others", topic=TOPIC)
    assert other.measure() == 6
    other.close()
    publish(kafka_bus, 1)
    assert lag.measure() == 4


def test_records_that_are_gone_do_not_count(
    kafka_bus: KafkaBus, kafka_settings: KafkaSettings, lag: GroupLag
) -> None:
    publish(kafka_bus, 0, 0, 0, 0)
    commit(kafka_bus, kafka_settings, {0: 1})
    with admin_client(kafka_settings) as admin:
        admin.delete_records({KafkaPartition(kafka_settings.topic_prefix + TOPIC, 0): 3})
    assert lag.measure() == 1


def test_a_missing_topic_is_no_lag_of_nothing(kafka_settings: KafkaSettings) -> None:
    lag = GroupLag(kafka_settings, group=GROUP, topic="no.such.topic")
    with pytest.raises(OffsetsUnknown, match="UnknownTopicOrPartition"):
        lag.measure()
    lag.close()


def test_it_can_be_measured_again_after_closing(kafka_bus: KafkaBus, lag: GroupLag) -> None:
    publish(kafka_bus, 0)
    assert measured(lag) == 1
    lag.close()
    assert lag.measure() == 1


def test_no_broker_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infra.kafka.connection.BOOTSTRAP_TIMEOUT_MS", 300)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        servers = f"127.0.0.1:{silent.getsockname()[1]}"
        lag = GroupLag(KafkaSettings(bootstrap_servers=servers), group=GROUP, topic=TOPIC)
        with pytest.raises(ConfigurationError, match=f"no Kafka broker answers at {servers}"):
            lag.measure()
        lag.close()
