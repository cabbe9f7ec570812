"""A running worker takes in what is set for it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest

from infra.registry.config import ConfigWatcher, publish_config
from infra.settings import WorkerSettings
from infra.testing import InMemoryBus
from stream_workers.admission import Limits
from stream_workers.configuration import OWN_PACKAGES, Configuration, config_watcher
from stream_workers.slack import BatchPolicy

NAME = "host-1.example.com-77"


class Part:
    """Remembers how it was last configured, and says when."""

    def __init__(self) -> None:
        self.given: Any = None
        self.changed = asyncio.Event()

    def reconfigure(self, given: Any) -> None:
        self.given = given
        self.changed.set()

    async def next(self) -> None:
        await asyncio.wait_for(self.changed.wait(), 10)
        self.changed.clear()


@pytest.fixture
def levels() -> Iterator[None]:
    before = {name: logging.getLogger(name).level for name in OWN_PACKAGES}
    yield
    for name, level in before.items():
        logging.getLogger(name).setLevel(level)


@pytest.mark.usefixtures("levels")
async def test_what_is_set_for_a_worker_comes_before_what_is_set_for_all() -> None:
    bus = InMemoryBus()
    writer = bus.publisher()

    def say(key: str, text: str) -> None:
        publish_config(writer, ConfigWatcher(bus), key, text, now_ms=0)

    settings = WorkerSettings(worker_id=NAME, chunk_max_tokens=8)
    say("worker.log_level", '"WARNING"')
    say(f"workers.{NAME}.chunk_interval_s", "0.5")
    configuration = Configuration(settings, config_watcher(bus, settings))
    handler = SimpleNamespace(chunk_interval_s=9.0, chunk_max_tokens=9)
    scheduler, window = Part(), Part()
    task = asyncio.ensure_future(configuration.follow(handler, scheduler, window))  # type: ignore[arg-type]
    root = logging.getLogger().level
    await window.next()
    assert (handler.chunk_interval_s, handler.chunk_max_tokens) == (0.5, 8)
    assert {logging.getLogger(name).level for name in OWN_PACKAGES} == {logging.WARNING}
    say("worker.chunk_max_tokens", "4")
    await window.next()
    assert handler.chunk_max_tokens == 4
    say(f"workers.{NAME}.max_inflight_tokens", "100")
    await window.next()
    assert isinstance(scheduler.given, Limits)
    assert isinstance(window.given, BatchPolicy)
    assert scheduler.given.max_inflight_tokens == window.given.max_tokens == 100
    say("workers.other.max_inflight_tokens", "7")
    await window.next()
    assert scheduler.given.max_inflight_tokens == 100
    say(f"workers.{NAME}.log_level", '"DEBUG"')
    await window.next()
    assert logging.getLogger("stream_workers.service").isEnabledFor(logging.DEBUG)
    assert logging.getLogger().level == root
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
