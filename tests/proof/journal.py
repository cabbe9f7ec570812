"""Reads a deployment's topics with librdkafka, from their beginnings, and each time to their ends.

Nothing of the platform's own code is used here, in ``rules`` or in ``traffic``.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import confluent_kafka
from confluent_kafka import KafkaError, KafkaException, TopicPartition

T = TypeVar("T")

PATIENCE_S = 60.0
REQUEST_TOPICS = ("generation.requests", "generation.requests.batch")
TOPICS = (
    *REQUEST_TOPICS,
    "generation.requests.dlq",
    "generation.requests.batch.dlq",
    "generation.chunks",
    "generation.results",
    "feedback.events",
    "feedback.forgotten",
    "feedback.examples",
    "model.registry",
    "model.rollouts",
    "platform.workers",
)
MOVING = {
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.NOT_COORDINATOR,
    KafkaError.NOT_LEADER_FOR_PARTITION,
}
"""Codes of an answer by a broker that what is asked about has left, or has not reached yet."""
Place = tuple[str, int, int]
"""Topic, partition, offset."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A record. ``event``: its value, if that is a JSON object. ``at_ms``: its timestamp."""

    place: Place
    key: str | None
    event: dict[str, Any] | None
    headers: dict[str, str] = field(default_factory=dict)
    at_ms: int = 0


class Unread(Exception):
    """A topic could not be read to its end within the patience."""


class Journal:
    """All records so far by topic; ``read`` adds what came since."""

    def __init__(self, servers: str, prefix: str, topics: Iterable[str] = TOPICS) -> None:
        self.records: dict[str, list[Seen]] = {topic: [] for topic in topics}
        self._prefix = prefix
        self._next: dict[tuple[str, int], int] = {}
        self._options: dict[str, Any] = {"bootstrap.servers": servers}

    def read(self) -> None:
        """To where each partition ends when the read of it gets there; aborted ones left out."""
        consumer = confluent_kafka.Consumer(
            {
                **self._options,
                # A name is asked for, but no group is joined and nothing is committed.
                "group.id": "unused",
                "enable.auto.commit": False,
                "enable.partition.eof": True,
                "isolation.level": "read_committed",
                "auto.offset.reset": "error",
            }
        )
        try:
            again(lambda: self._read(consumer))
        finally:
            consumer.close()

    def _read(self, consumer: confluent_kafka.Consumer) -> None:
        places = []
        for topic in self.records:
            name = self._prefix + topic
            found = consumer.list_topics(name, PATIENCE_S).topics[name]
            if found.error is not None:
                raise KafkaException(found.error)
            for number in found.partitions:
                begin = self._next.get((topic, number))
                if begin is None:
                    begin = consumer.get_watermark_offsets(
                        TopicPartition(name, number), PATIENCE_S
                    )[0]
                places.append(TopicPartition(name, number, begin))
        consumer.assign(places)
        unread = {(place.topic, place.partition) for place in places}
        patient_until = time.monotonic() + PATIENCE_S
        while unread:
            # It waits for so many or so long.
            batch = consumer.consume(1_000, 0.1)
            if batch:
                patient_until = time.monotonic() + PATIENCE_S
            elif time.monotonic() > patient_until:
                raise Unread(f"nothing came of {sorted(unread)} in {PATIENCE_S:g} s")
            for message in batch:
                error = message.error()
                if error is None:
                    self._add(message)
                elif error.code() == KafkaError._PARTITION_EOF:
                    unread.discard((message.topic(), message.partition()))
                elif error.fatal() or not error.retriable():
                    raise KafkaException(error)

    def _add(self, message: Any) -> None:
        topic = message.topic().removeprefix(self._prefix)
        place = (topic, message.partition(), message.offset())
        self._next[place[:2]] = message.offset() + 1
        key, value = message.key(), message.value()
        self.records[topic].append(
            Seen(
                place=place,
                key=None if key is None else key.decode("utf-8", "replace"),
                event=parsed(value),
                headers={
                    name: (held or b"").decode("utf-8", "replace")
                    for name, held in message.headers() or ()
                },
                at_ms=message.timestamp()[1],
            )
        )

    def write(self, path: Path) -> None:
        """All of it behind what the file holds, a record a line."""
        with path.open("a", encoding="utf-8") as stream:
            for records in self.records.values():
                stream.writelines(json.dumps(asdict(record)) + "\n" for record in records)

    def lag(
        self, group: str, topics: Sequence[str] = REQUEST_TOPICS
    ) -> Mapping[tuple[str, int], int]:
        """Records read so far that the group has not committed, by partition where there are."""
        asked = [
            TopicPartition(self._prefix + topic, number)
            for topic, number in self._next
            if topic in topics
        ]
        if not asked:
            return {}
        # A consumer, which joins nothing by asking: an administrator's client that is asked again
        # after a broker was away ends the process (librdkafka 2.16, a segmentation fault).
        consumer = confluent_kafka.Consumer({**self._options, "group.id": self._prefix + group})
        try:
            places = again(lambda: consumer.committed(asked, PATIENCE_S))
        finally:
            consumer.close()
        committed = {
            (place.topic.removeprefix(self._prefix), place.partition): max(place.offset, 0)
            for place in places
        }
        return Counter(
            record.place[:2]
            for topic in topics
            for record in self.records[topic]
            if record.place[2] >= committed.get(record.place[:2], 0)
        )


def again(question: Callable[[], T]) -> T:
    """Its answer, asked for again within the patience while a fault moves leaders about."""
    patient_until = time.monotonic() + PATIENCE_S
    while True:
        try:
            return question()
        except KafkaException as error:
            if error.args[0].code() not in MOVING or time.monotonic() > patient_until:
                raise
        time.sleep(0.2)


def parsed(value: bytes | None) -> dict[str, Any] | None:
    """The JSON object that a value is, if it is one."""
    if value is None:
        return None
    try:
        found = json.loads(value)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def newest(records: Iterable[Seen]) -> dict[str, dict[str, Any] | None]:
    """What a compacted topic says by key."""
    return {record.key: record.event for record in records if record.key is not None}
