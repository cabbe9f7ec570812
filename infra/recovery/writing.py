"""Writes records with the timestamps that they had, to the partitions that they were on.

A publisher of the bus stamps the present moment on what it publishes; here the moment is part of
what is restored, or retention would count anew.
"""

from __future__ import annotations

from typing import Any, Protocol

from kafka import KafkaProducer
from kafka.errors import AuthorizationError, KafkaError

from infra.contracts.errors import FeedloomError
from infra.kafka.bus import DELIVERY_TIMEOUT_MS, MAX_BLOCK_MS, DeliveryFailed
from infra.kafka.connection import access_refused, client_options, reachable
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

    Both ``write`` and what it returns raise DeliveryFailed or AccessRefused. The client's own
    future is given out as it is: a million fillers are waited for one by one.
    """

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._closed = False
        with reachable(settings):
            self._producer: Any = KafkaProducer(
                **client_options(settings),
                client_id="feedloom-recovery",
                acks="all",
                enable_idempotence=True,
                linger_ms=LINGER_MS,
                max_block_ms=MAX_BLOCK_MS,
                delivery_timeout_ms=DELIVERY_TIMEOUT_MS,
            )

    def write(self, topic: str, record: SavedRecord) -> Pending:
        """See :class:`RecordWriter`."""
        name = self._settings.topic_prefix + topic
        try:
            future = self._producer.send(
                name,
                key=record.key,
                value=record.value,
                headers=list(record.headers),
                partition=record.partition,
                timestamp_ms=record.timestamp_ms,
            )
        except KafkaError as error:
            raise _failure(self._settings, name, error) from error
        return _Sent(future, self._settings, name)

    def close(self) -> None:
        """See :class:`RecordWriter`."""
        if not self._closed:
            self._closed = True
            self._producer.close(timeout=DELIVERY_TIMEOUT_MS / 1000)


class _Sent:
    __slots__ = ("_future", "_name", "_settings")

    def __init__(self, future: Any, settings: KafkaSettings, name: str) -> None:
        self._future = future
        self._settings = settings
        self._name = name

    def offset(self) -> int:
        """See :class:`Pending`."""
        try:
            return int(self._future.get(timeout=ACKNOWLEDGE_TIMEOUT_S).offset)
        except KafkaError as error:
            raise _failure(self._settings, self._name, error) from error


def _failure(settings: KafkaSettings, name: str, error: KafkaError) -> FeedloomError:
    if isinstance(error, AuthorizationError):
        return access_refused(settings, f"write topic {name}", error)
    return DeliveryFailed(f"{name}: {type(error).__name__}: {error}")
