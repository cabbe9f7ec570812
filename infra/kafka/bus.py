"""The bus on a real Kafka: ``infra.contracts.bus`` on kafka-python.

What writes to it is in ``infra.kafka.publisher``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from time import perf_counter
from types import TracebackType
from typing import Any, Literal, Self

from kafka import KafkaConsumer
from kafka import TopicPartition as KafkaPartition
from kafka.errors import KafkaError, TopicAuthorizationFailedError
from kafka.structs import OffsetAndMetadata

from infra.contracts.bus import Partitions, Record, TopicPartition, wanted
from infra.contracts.errors import ConfigurationError, FeedloomError, RetryableError
from infra.kafka.broker import EmbeddedKafka
from infra.kafka.connection import (
    access_refused,
    admin_client,
    client_options,
    permitted,
    reachable,
)
from infra.kafka.credentials import Credentials
from infra.kafka.publisher import KafkaPublisher, idempotent_producer
from infra.settings import KafkaSettings, Settings
from observability.instruments import ERROR_TYPE, MESSAGING_OPERATION_DURATION
from observability.messaging import count_polled, measured

FETCH_MAX_WAIT_MS = 500
"""The broker answers a fetch at once when there is anything, and after this when there is not: an
idle reader costs two fetches a second, and a gateway has a dozen of them."""


class KafkaBus:
    """Publishers and readers on one deployment; the prefix of topics and groups is added and taken
    off here.
    """

    def __init__(self, settings: KafkaSettings) -> None:
        self._options = client_options(settings)
        self._settings = settings

    def publisher(self, *, client_id: str = "feedloom") -> KafkaPublisher:
        """A new idempotent producer. Raises ConfigurationError when no broker answers."""
        producer = idempotent_producer(self._settings, client_id=client_id)
        return KafkaPublisher(producer, self._settings)

    def reader(
        self,
        topics: Sequence[str],
        *,
        group: str | None = None,
        start: Literal["earliest", "latest"] = "earliest",
        partitions: Partitions | None = None,
    ) -> KafkaReader:
        """A new consumer.

        Raises ConfigurationError: no broker answers, a topic is missing, or may not be read.
        """
        if group is not None and partitions is not None:
            raise ValueError("a group shares partitions out: give a group or partitions, not both")
        prefix = self._settings.topic_prefix
        # Deployments that share a broker share no group.
        group = None if group is None else prefix + group
        consumer = self._consumer(group, start)
        try:
            assigned = [
                KafkaPartition(prefix + topic, partition)
                for topic in topics
                for partition in self._partitions(consumer, topic)
                if wanted(partitions, topic, partition)
            ]
            if group is not None:
                consumer.subscribe([prefix + topic for topic in topics])
            else:
                consumer.assign(assigned)
                if start == "latest":
                    for partition, end in consumer.end_offsets(assigned).items():
                        consumer.seek(partition, end)
                else:
                    consumer.seek_to_beginning(*assigned)
        except BaseException:
            consumer.close()
            raise
        return KafkaReader(consumer, self._settings, topics, group=group)

    def end_offsets(self, topic: str) -> Mapping[TopicPartition, int]:
        """The offset after the last committed record of each partition."""
        with self._asking(topic) as (consumer, asked):
            ends = consumer.end_offsets(asked)
        return {TopicPartition(topic, found.partition): end for found, end in ends.items()}

    def offsets_since(self, topic: str, timestamp_ms: int) -> Mapping[TopicPartition, int]:
        """The first offset written at or after a moment; the end where there is none."""
        with self._asking(topic) as (consumer, asked):
            found = consumer.offsets_for_times(dict.fromkeys(asked, timestamp_ms))
            ends = consumer.end_offsets(asked)
        return {
            TopicPartition(topic, each.partition): (
                ends[each] if found.get(each) is None else found[each].offset
            )
            for each in asked
        }

    def close(self) -> None:
        """Nothing to let go of: every client belongs to its publisher or reader."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @contextmanager
    def _asking(self, topic: str) -> Iterator[tuple[Any, list[Any]]]:
        """A consumer for a question about a topic, and the topic's partitions."""
        consumer = self._consumer(None, "earliest")
        try:
            name = self._settings.topic_prefix + topic
            yield consumer, [KafkaPartition(name, one) for one in self._partitions(consumer, topic)]
        finally:
            consumer.close()

    def _consumer(self, group: str | None, start: str) -> Any:
        with reachable(self._settings):
            return KafkaConsumer(
                **self._options,
                group_id=group,
                client_id="feedloom",
                auto_offset_reset=start,
                enable_auto_commit=False,
                isolation_level="read_committed",
                fetch_max_wait_ms=FETCH_MAX_WAIT_MS,
                allow_auto_create_topics=False,
            )

    def _partitions(self, consumer: Any, topic: str) -> list[int]:
        name = self._settings.topic_prefix + topic
        with permitted(self._settings, f"read topic {name}"):
            found = consumer.partitions_for_topic(name)
        if not found:
            self._check_visible(name)
            raise ConfigurationError(
                f"topic {name} is not on {self._settings.bootstrap_servers}: run "
                "`feedloom topics apply`"
            )
        return sorted(found)

    def _check_visible(self, name: str) -> None:
        """A topic that may not be seen looks like none; asked for by name, the broker says which.

        Raises AccessRefused.
        """
        with reachable(self._settings), admin_client(self._settings) as admin:
            (described,) = admin.describe_topics([name])
        if described["error_code"] == TopicAuthorizationFailedError.errno:
            raise access_refused(
                self._settings, f"read topic {name}", TopicAuthorizationFailedError()
            )


class KafkaReader:
    """See :class:`infra.contracts.bus.Reader`."""

    def __init__(
        self, consumer: Any, settings: KafkaSettings, topics: Sequence[str], *, group: str | None
    ) -> None:
        self._consumer = consumer
        self._settings = settings
        self._prefix = settings.topic_prefix
        self._group = group
        self._action = f"read {', '.join(self._prefix + topic for topic in topics)}" + (
            "" if group is None else f" as group {group}"
        )
        self._closed = False

    def poll(self, timeout_s: float, max_records: int = 500) -> Sequence[Record]:
        """The next records, each partition's in order. Raises AccessRefused, LoginRefused."""
        began = perf_counter()
        with permitted(self._settings, self._action):
            found = self._consumer.poll(timeout_ms=int(1000 * timeout_s), max_records=max_records)
        if found:
            took_s = perf_counter() - began
            count_polled(found, took_s, prefix=self._prefix, group=self._group)
        return [
            Record(
                topic=record.topic.removeprefix(self._prefix),
                partition=record.partition,
                offset=record.offset,
                timestamp_ms=record.timestamp,
                key=record.key,
                value=record.value,
                headers=tuple((name, value or b"") for name, value in record.headers),
            )
            for records in found.values()
            for record in records
        ]

    def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Store next-to-read offsets, and wait until they are stored.

        Raises RetryableError, or AccessRefused or LoginRefused, which no retry mends.
        """
        if self._group is None:
            raise RuntimeError("a reader without a group has nowhere to commit to")
        stored = {
            KafkaPartition(self._prefix + position.topic, position.partition): (
                OffsetAndMetadata(offset, "", -1)
            )
            for position, offset in offsets.items()
        }
        began, attributes = perf_counter(), measured("commit", group=self._group)
        try:
            with permitted(self._settings, self._action):
                self._consumer.commit(stored)
        except (KafkaError, FeedloomError) as error:
            attributes[ERROR_TYPE] = type(error).__qualname__
            if isinstance(error, FeedloomError):
                raise
            raise RetryableError(f"offsets not committed: {error}") from error
        finally:
            MESSAGING_OPERATION_DURATION.record(perf_counter() - began, attributes)

    def seek(self, position: TopicPartition, offset: int) -> None:
        """Read this partition from ``offset`` next."""
        self._consumer.seek(
            KafkaPartition(self._prefix + position.topic, position.partition), offset
        )

    def seek_since(self, timestamp_ms: int) -> Mapping[TopicPartition, int]:
        """Read next what was written at or after a moment; returns the present ends."""
        if self._group is not None:
            raise RuntimeError("a group says where its members read")
        with permitted(self._settings, self._action):
            assigned = self._consumer.assignment()
            found = self._consumer.offsets_for_times(dict.fromkeys(assigned, timestamp_ms))
            ends = self._consumer.end_offsets(assigned)
        for partition, end in ends.items():
            since = found.get(partition)
            self._consumer.seek(partition, end if since is None else since.offset)
        return {
            TopicPartition(each.topic.removeprefix(self._prefix), each.partition): end
            for each, end in ends.items()
        }

    def position(self, position: TopicPartition) -> int:
        """The offset read next."""
        with permitted(self._settings, self._action):
            at = self._consumer.position(
                KafkaPartition(self._prefix + position.topic, position.partition)
            )
        return int(at)

    def close(self) -> None:
        """Leave the group and disconnect."""
        if not self._closed:
            self._closed = True
            self._consumer.close()


def resolve_kafka(settings: Settings) -> KafkaSettings:
    """The Kafka settings with the address filled in: as set, else the embedded broker's.

    Where that is secured, and the settings say nothing of security, name and password of
    ``local_user`` are filled in too. Raises ConfigurationError when neither broker is there.
    """
    if settings.kafka.bootstrap_servers is not None:
        return settings.kafka
    status = EmbeddedKafka(settings.home).status()
    if status is None:
        raise ConfigurationError(
            f"no Kafka broker is set, and the embedded one of {settings.home.resolve()} does not "
            "run: run `feedloom kafka start`, or set FEEDLOOM_KAFKA__BOOTSTRAP_SERVERS"
        )
    kafka = settings.kafka.model_copy(update={"bootstrap_servers": status.bootstrap_servers})
    if status.secured and kafka.security_protocol == "PLAINTEXT":
        return Credentials(settings.home).log_in(kafka, kafka.local_user)
    return kafka


def connect(settings: Settings) -> KafkaBus:
    """The bus of these settings; raises as :func:`resolve_kafka`."""
    return KafkaBus(resolve_kafka(settings))
