"""A worker that is told to stop while no broker answers stops all the same."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from infra.kafka.bus import KafkaBus
from tests.conftest import embedded_broker, new_deployment

from .conftest import Workers
from .steady import Publisher

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

GIVEN_UP_S = 200.0
"""Far more than it takes: Faust, aiokafka and kafka-python would wait for ever."""


def test_a_worker_with_requests_in_flight_stops_without_a_broker(tmp_path: Path) -> None:
    with embedded_broker(tmp_path / "kafka", brokers=1, heap_mb=320) as kafka:
        status = kafka.start(attached=True)
        settings = new_deployment(status.bootstrap_servers)
        workers = Workers(KafkaBus(settings), settings, tmp_path)
        publisher: Publisher | None = None
        try:
            worker = workers.start(token_interval_s=0.02, drain_timeout_s=2)
            workers.watch.close()
            publisher = Publisher(tmp_path, settings, in_flight=8, tokens=60)
            publisher.await_more(1)
            for node in status.nodes:
                os.kill(node.pid, signal.SIGKILL)
            os.kill(worker.pid, signal.SIGTERM)
            assert worker.wait(GIVEN_UP_S) == 0, worker.log_tail()
            assert "the group could not be left" in worker.log.read_text()
        finally:
            if publisher is not None:
                publisher.child.stop(0)
            workers.close()
