"""Dynamic configuration on a real broker: one change reaches every process."""

from __future__ import annotations

import logging
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

import pytest

from infra.contracts import catalogue
from infra.kafka.bus import KafkaBus
from infra.local.supervisor import Child
from infra.registry.config import HISTORY, ConfigOvertaken, ConfigWatcher, publish_config
from infra.registry.config_history import read_history, revert_config

from .conftest import Workers

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


def test_history_and_revert(kafka_bus: KafkaBus) -> None:
    publisher, writer = kafka_bus.publisher(), ConfigWatcher(kafka_bus)
    published = [
        publish_config(publisher, writer, KEY, text, now_ms=moment, actor="ann", reason="r")
        for moment, text in enumerate(["5", "6", "null"])
    ]
    reverted = revert_config(kafka_bus, publisher, writer, KEY, to=None, now_ms=9)
    assert (reverted.value, reverted.revision) == ("6", 4)
    told = read_history(kafka_bus)
    assert [past.event for past in told] == [*published, reverted]
    assert [past.outcome for past in told] == ["replaced"] * 3 + ["in force"]
    assert sum(kafka_bus.end_offsets(HISTORY).values()) == 4 + 3
    publisher.close()
    writer.close()


def test_how_long_a_change_takes_to_a_watcher_that_polls(kafka_bus: KafkaBus) -> None:
    """Prints it (``-s``); how fast a broker is differs by machine."""
    watcher, writer, publisher = (
        ConfigWatcher(kafka_bus),
        ConfigWatcher(kafka_bus),
        kafka_bus.publisher(),
    )
    watcher.catch_up(60)
    written: list[float] = []
    seen: list[float] = []
    with ThreadPoolExecutor(1) as pool:
        for number in range(1, 21):
            arrival = pool.submit(_arrival, watcher)
            begun = time.monotonic()
            publish_config(publisher, writer, KEY, str(number), now_ms=number)
            written.append(time.monotonic() - begun)
            seen.append(arrival.result(30) - begun)
    for what, seconds in (("known to the writer", written), ("in a watcher", seen)):
        print(  # noqa: T201 - what it is for
            f"a change is {what} after {statistics.median(seconds) * 1000:.0f} ms, "
            f"at most {max(seconds) * 1000:.0f} ms"
        )
    for each in (watcher, writer, publisher):
        each.close()


def _arrival(watcher: ConfigWatcher) -> float:
    while not watcher.poll(1.0):
        pass
    return time.monotonic()


def test_a_running_worker_follows_without_a_restart(workers: Workers) -> None:
    """Prints how long the worker took, by its own log."""
    child = workers.start()
    pid = child.pid
    writer, publisher = ConfigWatcher(workers.bus), workers.bus.publisher()
    took = []
    for key, text in (
        ("worker.max_waiting", "7"),
        ("workers.worker-0.log_level", '"DEBUG"'),
        ("workers.worker-0.chunk_max_tokens", "3"),
    ):
        begun = time.time()
        publish_config(publisher, writer, key, text, now_ms=int(begun * 1000))
        took.append(_followed_at(workers, child, key) - begun)
    print(f"a worker followed after {max(took) * 1000:.0f} ms at most")  # noqa: T201
    assert (child.pid, child.exit_status) == (pid, None)
    assert child.log.read_text().count("stream_workers.service: serving ") == 1
    publisher.close()
    writer.close()


def _followed_at(workers: Workers, child: Child, key: str) -> float:
    """When a worker's log says that it took a change in."""

    def lines() -> list[str]:
        found = child.log.read_text().splitlines()
        return [line for line in found if line.endswith(f"settings changed: {key}")]

    workers.wait(f"{key} in {child.name}", lambda: bool(lines()))
    return datetime.strptime(lines()[0][:23], "%Y-%m-%d %H:%M:%S,%f").timestamp()
