"""Writes records to a real Kafka: the idempotent producer, and what its errors mean."""

from __future__ import annotations

import logging
from concurrent.futures import Future
from time import perf_counter
from typing import Any

from kafka import KafkaProducer
from kafka.errors import (
    AuthorizationError,
    KafkaError,
    KafkaTimeoutError,
    SaslAuthenticationFailedError,
    TopicAuthorizationFailedError,
)

from infra.contracts.bus import RecordPosition
from infra.contracts.codec import Headers
from infra.contracts.errors import FeedloomError, RetryableError
from infra.kafka.connection import access_refused, client_options, login_refused, reachable
from infra.settings import KafkaSettings
from observability.messaging import count_sent

_LOG = logging.getLogger(__name__)

LINGER_MS = 2
MAX_BLOCK_MS = 30_000
DELIVERY_TIMEOUT_MS = 120_000


class DeliveryFailed(RetryableError):
    """The broker did not take a record; the message says why. Published again it may succeed."""


def idempotent_producer(
    settings: KafkaSettings, *, client_id: str, linger_ms: int = LINGER_MS
) -> KafkaProducer:
    """Its retries neither lose nor duplicate. Raises ConfigurationError: no broker answers."""
    with reachable(settings):
        return KafkaProducer(
            **client_options(settings),
            client_id=client_id,
            acks="all",
            enable_idempotence=True,
            linger_ms=linger_ms,
            max_block_ms=MAX_BLOCK_MS,
            delivery_timeout_ms=DELIVERY_TIMEOUT_MS,
        )


def write_failure(settings: KafkaSettings, topic: str, error: BaseException) -> FeedloomError:
    """What a producer's error means: DeliveryFailed, or AccessRefused or LoginRefused, which no
    retry mends. ``topic`` as the catalogue names it.
    """
    if isinstance(error, AuthorizationError):
        # One record that the broker does not allow ends an idempotent producer of kafka-python:
        # what else it was to write fails for that one's topic, which the error names.
        (refused,) = error.args if isinstance(error, TopicAuthorizationFailedError) else ("",)
        name = refused if isinstance(refused, str) and refused else settings.topic_prefix + topic
        return access_refused(settings, f"write topic {name}", error)
    if isinstance(error, SaslAuthenticationFailedError):
        return login_refused(settings, error)
    return DeliveryFailed(f"{topic}: {type(error).__name__}: {error}")


class KafkaPublisher:
    """See :class:`infra.contracts.bus.Publisher`."""

    def __init__(self, producer: Any, settings: KafkaSettings) -> None:
        self._producer = producer
        self._settings = settings
        self._prefix = settings.topic_prefix
        self._closed = False

    def publish(
        self,
        topic: str,
        *,
        key: bytes | None,
        value: bytes | None,
        headers: Headers = (),
        partition: int | None = None,
    ) -> Future[RecordPosition]:
        """Enqueue. The future ends on the client's thread.

        Its error is DeliveryFailed, or AccessRefused or LoginRefused, which no retry mends.
        """
        future: Future[RecordPosition] = Future()
        began = perf_counter()

        def written(metadata: Any) -> None:
            count_sent(topic, perf_counter() - began)
            future.set_result(RecordPosition(topic, metadata.partition, metadata.offset))

        def failed(error: BaseException) -> None:
            failure = write_failure(self._settings, topic, error)
            count_sent(topic, perf_counter() - began, error=failure)
            future.set_exception(failure)

        try:
            pending = self._producer.send(
                self._prefix + topic,
                key=key,
                value=value,
                headers=list(headers),
                partition=partition,
            )
        except (KafkaError, AssertionError) as error:
            failed(error)
            return future
        pending.add_callback(written)
        pending.add_errback(failed)
        return future

    def flush(self, timeout_s: float | None = None) -> None:
        """Wait for everything published so far. Raises ``TimeoutError``."""
        try:
            self._producer.flush(timeout=timeout_s)
        except KafkaTimeoutError as error:
            raise TimeoutError(f"records are still unsent after {timeout_s} s") from error

    def close(self, timeout_s: float = DELIVERY_TIMEOUT_MS / 1000) -> None:
        """See :class:`infra.contracts.bus.Publisher`."""
        if self._closed:
            return
        self._closed = True
        try:
            self._producer.flush(timeout=timeout_s)
        except KafkaTimeoutError:
            _LOG.warning(
                "Kafka did not take in %.0f s all that was to be written: the rest has failed",
                timeout_s,
            )
            # Closing would flush again, raise, and leave the thread to go on trying.
            self._producer._sender.force_close()
            self._producer._sender.join()
        self._producer.close(timeout=timeout_s)
