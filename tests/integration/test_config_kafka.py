"""Dynamic configuration on a real broker: one change reaches every process."""

from __future__ import annotations

import logging
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from infra.contracts import catalogue
from infra.kafka.bus import KafkaBus
from infra.registry.config import ConfigOvertaken, ConfigWatcher, publish_config

pytestmark = pytest.mark.kafka

KEY = "worker.max_waiting"


def until_changed(watcher: ConfigWatcher, timeout_s: float = 30) -> list[str]:
    deadline = time.monotonic() + timeout_s
    changed: list[str] = []
    while not changed and time.monotonic() < deadline:
        changed = watcher.poll(0.2)
    return changed


def test_a_change_reaches_watchers_that_run_and_that_come_later(
    kafka_bus: KafkaBus, caplog: pytest.LogCaptureFixture
) -> None:
    running, writer = ConfigWatcher(kafka_bus), ConfigWatcher(kafka_bus)
    publisher = kafka_bus.publisher()
    publisher.publish(catalogue.CONFIG.name, key=KEY.encode(), value=b"{").result(30)
    publish_config(publisher, writer, KEY, "5", now_ms=1)
    publish_config(publisher, writer, "tenants.acme.weight", "2.5", now_ms=2)
    with caplog.at_level(logging.WARNING):
        running.catch_up(60)
    assert "unreadable record" in caplog.text
    assert running.state.worker.max_waiting == 5
    publish_config(publisher, writer, KEY, "null", now_ms=3)
    assert until_changed(running) == [KEY]
    publisher.publish(catalogue.CONFIG.name, key=b"tenants.acme.weight", value=None).result(30)
    assert until_changed(running) == ["tenants.acme.weight"]
    late = ConfigWatcher(kafka_bus)
    late.catch_up(60)
    for watcher in (running, late):
        assert watcher.state.worker.max_waiting == 32
        assert watcher.state.tenant("acme").weight == 1.0
        assert watcher.state.next_revision(KEY) == 3
        watcher.close()
    publisher.close()
    writer.close()


def test_of_rival_writers_every_reader_believes_the_same(kafka_bus: KafkaBus) -> None:
    def write(number: int) -> str | None:
        watcher, publisher = ConfigWatcher(kafka_bus), kafka_bus.publisher()
        try:
            return publish_config(publisher, watcher, KEY, str(number), now_ms=number).value
        except ConfigOvertaken:
            return None
        finally:
            publisher.close()
            watcher.close()

    with ThreadPoolExecutor(4) as pool:
        outcomes = list(pool.map(write, range(1, 5)))
    standing = set()
    for _ in range(2):
        watcher = ConfigWatcher(kafka_bus)
        watcher.catch_up(60)
        standing.add(watcher.state.worker.max_waiting)
        watcher.close()
    assert len(standing) == 1
    assert str(standing.pop()) in outcomes
