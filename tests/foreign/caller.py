"""A caller made of librdkafka's Python client: publishes events, and follows the answers."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import confluent_kafka

from . import messages

PATIENCE_S = 60.0
ANY_PARTITION = -1
LEADERLESS = {
    confluent_kafka.KafkaError.LEADER_NOT_AVAILABLE,
    confluent_kafka.KafkaError.NOT_LEADER_FOR_PARTITION,
}


def anything(_: dict[str, Any]) -> bool:
    return True


def is_final(chunk: dict[str, Any]) -> bool:
    return bool(chunk["final"])


class Caller:
    """Publishes events and follows the topics that answer, as a service would."""

    def __init__(self, options: dict[str, Any], prefix: str) -> None:
        self._prefix = prefix
        self._producer = confluent_kafka.Producer(
            {**options, "enable.idempotence": True, "partitioner": "murmur2_random"}
        )
        self._consumer = confluent_kafka.Consumer(
            {
                **options,
                # The client wants a name, but nothing is committed and no group is joined.
                "group.id": "unused",
                "enable.auto.commit": False,
                "isolation.level": "read_committed",
            }
        )
        self._seen: list[tuple[str, str, dict[str, Any]]] = []

    def follow(self, *topics: str) -> None:
        """All partitions, each from its present end."""
        chosen = []
        for topic in topics:
            name = self._prefix + topic
            found = self._consumer.list_topics(name, PATIENCE_S).topics[name]
            assert found.error is None, found.error
            for partition in found.partitions:
                place = confluent_kafka.TopicPartition(name, partition)
                place.offset = self._end(place)
                chosen.append(place)
        self._consumer.assign(chosen)

    def _end(self, place: confluent_kafka.TopicPartition) -> int:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                _, end = self._consumer.get_watermark_offsets(place, PATIENCE_S)
            except confluent_kafka.KafkaException as error:
                # Of a partition that was just made and has no leader yet.
                if error.args[0].code() not in LEADERLESS or time.monotonic() > deadline:
                    raise
            else:
                return int(end)

    def publish(
        self, topic: str, key: str, event: dict[str, Any], *, partition: int = ANY_PARTITION
    ) -> None:
        """Returns once the broker has it; raises if it does not take it."""
        failures: list[confluent_kafka.KafkaError] = []
        self._producer.produce(
            self._prefix + topic,
            partition=partition,
            key=key.encode(),
            value=messages.encode(event),
            headers=list(messages.headers(event).items()),
            on_delivery=lambda error, _: failures.append(error) if error else None,
        )
        assert self._producer.flush(PATIENCE_S) == 0
        if failures:
            raise confluent_kafka.KafkaException(failures[0])

    def find(
        self, topic: str, key: str | None, wanted: Callable[[dict[str, Any]], bool] = anything
    ) -> list[dict[str, Any]]:
        """What came on a topic for a key (``None``: any), in order, up to what is wanted."""
        deadline = time.monotonic() + PATIENCE_S
        place = 0
        found: list[dict[str, Any]] = []
        while True:
            while place < len(self._seen):
                where, whose, event = self._seen[place]
                place += 1
                if where == topic and key in (None, whose):
                    found.append(event)
                    if wanted(event):
                        return found
            self._take(deadline)

    def _take(self, deadline: float) -> None:
        message = self._consumer.poll(max(0.0, deadline - time.monotonic()))
        assert message is not None, f"nothing came in {PATIENCE_S:g} s"
        if (error := message.error()) is not None:
            # librdkafka looks for the group's coordinator though nobody asked it to; who may not
            # is told so, and reads on.
            if error.code() != confluent_kafka.KafkaError.GROUP_AUTHORIZATION_FAILED:
                raise confluent_kafka.KafkaException(error)
            return
        topic, key, value = message.topic(), message.key(), message.value()
        assert topic is not None
        assert key is not None
        assert value is not None
        self._seen.append((topic.removeprefix(self._prefix), key.decode(), json.loads(value)))

    def close(self) -> None:
        self._consumer.close()


@contextmanager
def calling(prefix: str, **options: Any) -> Iterator[Caller]:
    named = {name.replace("_", "."): value for name, value in options.items()}
    caller = Caller(named, prefix)
    try:
        yield caller
    finally:
        caller.close()
