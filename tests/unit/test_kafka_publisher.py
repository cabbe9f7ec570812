"""What becomes of records that a publisher still holds when it is closed."""

from __future__ import annotations

from typing import Any

import pytest
from kafka.errors import KafkaTimeoutError

from infra.kafka.publisher import KafkaPublisher
from infra.settings import KafkaSettings


class _Sender:
    def __init__(self, calls: list[str]) -> None:
        self._calls = calls

    def force_close(self) -> None:
        self._calls.append("force_close")

    def join(self) -> None:
        self._calls.append("join")


class _Producer:
    """Kafka-python's, as far as closing goes. ``answers``: whether there is a broker."""

    def __init__(self, *, answers: bool) -> None:
        self._answers = answers
        self.calls: list[str] = []
        self._sender = _Sender(self.calls)

    def flush(self, timeout: float | None = None) -> None:
        self.calls.append(f"flush {timeout:g}")
        if not self._answers:
            raise KafkaTimeoutError("Timeout waiting for future")

    def close(self, **options: Any) -> None:
        self.calls.append("close")


def test_closing_writes_what_is_left() -> None:
    producer = _Producer(answers=True)
    publisher = KafkaPublisher(producer, KafkaSettings())
    publisher.close(7)
    publisher.close(7)
    assert producer.calls == ["flush 7", "close"]


def test_closing_without_a_broker_fails_what_is_left(caplog: pytest.LogCaptureFixture) -> None:
    producer = _Producer(answers=False)
    KafkaPublisher(producer, KafkaSettings()).close(7)
    assert producer.calls == ["flush 7", "force_close", "join", "close"]
    assert "did not take in 7 s all that was to be written" in caplog.text
