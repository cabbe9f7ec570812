"""Writes records with the timestamps that they had, to the partitions that they were on.

A publisher of the bus stamps the present moment on what it publishes; here the moment is part of
what is restored, or retention would count anew.
"""

from __future__ import annotations

from typing import Any, Protocol

from kafka.errors import KafkaError

from infra.kafka.publisher import DELIVERY_TIMEOUT_MS, idempotent_producer, write_failure
from infra.recovery.snapshot import SavedRecord
from infra.settings import KafkaSettings

LINGER_MS = 20
ACKNOWLEDGE_TIMEOUT_S = 150.0


class Pending(Protocol):
    """A record on its way."""

    def offset(self) -> int:
        """Where it came to lie; waits until the broker has it."""
        ...


class RecordWriter(Protocol):
    """Writes to topics of the catalogue; a retry inside it never duplicates."""

    def write(self, topic: str, record: SavedRecord) -> Pending:
        """Enqueue for the record's partition, after what was enqueued for it before."""
        ...

    def close(self) -> None:
        """Flush, then let go of the connection. Safe to call twice."""
        ...


class KafkaRecordWriter:
    """See :class:`RecordWriter`. Raises ConfigurationError when no broker answers.

    Both ``write`` and what it returns raise as ``write_failure`` says. The client's own
    future is given out as it is: a million fillers are waited for one by one.
    """

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._closed = False
        self._producer: Any = idempotent_producer(
            settings, client_id="feedloom-recovery", linger_ms=LINGER_MS
        )

    def write(self, topic: str, record: SavedRecord) -> Pending:
        """See :class:`RecordWriter`."""
        try:
            future = self._producer.send(
                self._settings.topic_prefix + topic,
                key=record.key,
                value=record.value,
                headers=list(record.headers),
                partition=record.partition,
                timestamp_ms=record.timestamp_ms,
            )
        except KafkaError as error:
            raise write_failure(self._settings, topic, error) from error
        return _Sent(future, self._settings, topic)

    def close(self) -> None:
        """See :class:`RecordWriter`."""
        if not self._closed:
            self._closed = True
            self._producer.close(timeout=DELIVERY_TIMEOUT_MS / 1000)


class _Sent:
    __slots__ = ("_future", "_settings", "_topic")

    def __init__(self, future: Any, settings: KafkaSettings, topic: str) -> None:
        self._future = future
        self._settings = settings
        self._topic = topic

    def offset(self) -> int:
        """See :class:`Pending`."""
        try:
            return int(self._future.get(timeout=ACKNOWLEDGE_TIMEOUT_S).offset)
        except KafkaError as error:
            raise write_failure(self._settings, self._topic, error) from error
