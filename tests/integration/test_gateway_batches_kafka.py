"""A batch on a real broker outlives its runner: closed, and killed with SIGKILL."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaConsumer

from infra.contracts import catalogue, codec
from infra.contracts.bus import read_to_end
from infra.contracts.events.generation import GenerationRequest, GenerationResult
from infra.kafka.bus import KafkaBus
from infra.settings import GatewaySettings, KafkaSettings
from producers.gateway.batches.log import BatchLog
from producers.gateway.batches.service import BatchService
from producers.gateway.identifiers import parse
from tests.gateway import principal

pytestmark = pytest.mark.kafka

ACME = principal("acme")
URL = "/v1/completions"
LINES = 400
WINDOW = 256


class BatchWorker:
    """Answers requests of the batch class once each, the first ``allowed`` of them at first."""

    def __init__(self, bus: KafkaBus, *, allowed: int) -> None:
        self.allowed = allowed
        self.generated: Counter[str] = Counter()
        self._bus = bus
        self._stop = threading.Event()
        self._reader = bus.reader([catalogue.REQUESTS_BATCH.name])
        self._publisher = bus.publisher()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        waiting: list[GenerationRequest] = []
        seen: set[str] = set()
        while not self._stop.is_set():
            for record in self._reader.poll(0.1):
                request = codec.decode(record.value or b"", GenerationRequest)
                if request.submit_id not in seen:
                    seen.add(request.submit_id)
                    waiting.append(request)
            while waiting and self.generated.total() < self.allowed:
                self._answer(waiting.pop(0))

    def _answer(self, request: GenerationRequest) -> None:
        self.generated[request.request_id] += 1
        result = GenerationResult(
            request_id=request.request_id,
            submit_id=request.submit_id,
            model=request.model,
            prompt=request.prompt,
            text=request.prompt[::-1],
            finish_reason="stop",
            prompt_tokens=1,
            output_tokens=1,
            model_versions=("1",),
            created_at_ms=request.created_at_ms,
            finished_at_ms=time.time_ns() // 1_000_000,
            tenant=request.tenant,
        )
        self._publisher.publish(
            catalogue.RESULTS.name, key=request.request_id.encode(), value=codec.encode(result)
        )

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self._publisher.close()
        self._reader.close()


@contextmanager
def working(bus: KafkaBus, *, allowed: int) -> Iterator[BatchWorker]:
    worker = BatchWorker(bus, allowed=allowed)
    try:
        yield worker
    finally:
        worker.close()


@contextmanager
def replica(bus: KafkaBus, folder: Path, name: str) -> Iterator[BatchService]:
    settings = GatewaySettings(files_url=str(folder))
    made = BatchService(bus, settings, source=name, known=lambda _: True)
    try:
        yield made
    finally:
        made.close()


@contextmanager
def onlooker(bus: KafkaBus) -> Iterator[BatchLog]:
    log = BatchLog(bus, source="onlooker")
    try:
        yield log
    finally:
        log.close()


def start(service: BatchService) -> str:
    rows = [
        {
            "custom_id": f"c{number}",
            "method": "POST",
            "url": URL,
            "body": {"model": "default", "prompt": f"number {number}"},
        }
        for number in range(LINES)
    ]
    content = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    file = service.upload(ACME, "in.jsonl", io.BytesIO(content), len(content))
    return service.create(ACME, input_file_id=file.file_id, endpoint=URL, metadata={}).batch_id


def until(condition: Callable[[], bool], timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        threading.Event().wait(0.05)


def rows_of(service: BatchService, file_id: str | None) -> list[Any]:
    assert file_id is not None
    blocks = service.content(ACME, file_id)
    return [json.loads(line) for line in b"".join(blocks).splitlines()]


def check_whole(
    bus: KafkaBus, service: BatchService, batch_id: str, worker: BatchWorker, *, again: int
) -> None:
    """Every line is answered once; at most ``again`` requests were put on the topic twice."""
    done = service.batch(ACME, batch_id)
    assert (done.status, done.completed, done.failed) == ("completed", LINES, 0)
    rows = rows_of(service, done.output_file_id)
    assert [row["custom_id"] for row in rows] == [f"c{number}" for number in range(LINES)]
    for number, row in enumerate(rows):
        text = row["response"]["body"]["choices"][0]["text"]
        assert text == f"number {number}"[::-1]
    ids = {row["response"]["request_id"] for row in rows}
    assert len(ids) == LINES
    assert all((found := parse(each)) and found.belongs_to("acme") for each in ids)
    asked = Counter(record.key_text for record in read_to_end(bus, catalogue.REQUESTS_BATCH.name))
    assert set(asked) == ids == set(worker.generated)
    assert asked.total() - LINES <= again
    assert set(worker.generated.values()) == {1}
    places = {
        (record.key_text, record.partition)
        for record in read_to_end(bus, catalogue.REQUESTS_BATCH.name)
    }
    assert len(places) == LINES, "one asked again must meet the worker that knows it"


def test_a_second_runner_finishes_what_a_first_began(kafka_bus: KafkaBus, tmp_path: Path) -> None:
    with working(kafka_bus, allowed=100) as worker:
        with replica(kafka_bus, tmp_path, "first") as first:
            batch_id = start(first)
            until(lambda: worker.generated.total() == 100)
            until(lambda: first.batch(ACME, batch_id).completed > 0)
        with onlooker(kafka_bus) as log:
            left = log.batch(batch_id)
            assert left is not None
            assert left.event.status == "in_progress"
        # Answered while no gateway was there.
        worker.allowed = 150
        until(lambda: worker.generated.total() == 150)
        with replica(kafka_bus, tmp_path, "second") as second:
            worker.allowed = LINES
            until(lambda: second.batch(ACME, batch_id).status == "completed")
            check_whole(kafka_bus, second, batch_id, worker, again=0)


def test_two_replicas_hand_a_batch_over_while_both_run(kafka_bus: KafkaBus, tmp_path: Path) -> None:
    """Joining moves partitions; the log of the batch says whose it is."""
    with (
        working(kafka_bus, allowed=100) as worker,
        replica(kafka_bus, tmp_path, "first") as first,
    ):
        batch_id = start(first)
        until(lambda: worker.generated.total() == 100)
        with replica(kafka_bus, tmp_path, "second") as second:
            worker.allowed = LINES
            until(lambda: second.batch(ACME, batch_id).status == "completed")
            check_whole(kafka_bus, second, batch_id, worker, again=WINDOW)
            until(lambda: first.batch(ACME, batch_id).status == "completed")
            assert first.batch(ACME, batch_id) == second.batch(ACME, batch_id)
            assert (first.fault(), second.fault()) == (None, None)


@pytest.mark.slow
def test_a_killed_runner_is_replaced(
    kafka_bus: KafkaBus, kafka_settings: KafkaSettings, tmp_path: Path
) -> None:
    """The group notices after its session's time that the process is gone."""
    assert kafka_settings.bootstrap_servers is not None
    with working(kafka_bus, allowed=100) as worker:
        child = subprocess.Popen(
            [
                sys.executable,
                __file__,
                kafka_settings.bootstrap_servers,
                kafka_settings.topic_prefix,
                str(tmp_path),
            ],
            cwd=Path(__file__).resolve().parents[2],
            env={"PYTHONPATH": str(Path(__file__).resolve().parents[2])},
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert child.stdout is not None
            batch_id = child.stdout.readline().strip()
            assert batch_id.startswith("batch_")
            until(lambda: worker.generated.total() == 100)
        finally:
            child.send_signal(signal.SIGKILL)
            child.wait()
            child.stdout.close()
        with replica(kafka_bus, tmp_path, "second") as second:
            worker.allowed = LINES
            until(lambda: second.batch(ACME, batch_id).status == "completed", 240)
            check_whole(kafka_bus, second, batch_id, worker, again=0)
    names = {path.name for path in tmp_path.iterdir()}
    done = {name for name in names if not name.startswith("file-")}
    assert done == set(), "nothing half-written is left"


def _run_until_killed(bootstrap: str, prefix: str, folder: str) -> None:
    # As long as it is missed, nobody takes its place.
    KafkaConsumer.DEFAULT_CONFIG |= {"session_timeout_ms": 6_000, "heartbeat_interval_ms": 2_000}
    bus = KafkaBus(KafkaSettings(bootstrap_servers=bootstrap, topic_prefix=prefix))
    with replica(bus, Path(folder), "first") as service:
        sys.stdout.write(f"{start(service)}\n")
        sys.stdout.flush()
        threading.Event().wait(200)


if __name__ == "__main__":
    _run_until_killed(*sys.argv[1:])
