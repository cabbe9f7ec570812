"""Whose a batch is, and what becomes of one whose runner is cut off, or whose store fails."""

from __future__ import annotations

import io
import json
import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import msgspec
import pytest

from infra.contracts import catalogue, codec
from infra.contracts.events.gateway import BatchChanged
from infra.contracts.events.generation import GenerationRequest
from infra.registry.client import send
from infra.settings import GatewaySettings
from infra.testing import InMemoryBus
from producers.gateway.batches import runner, store
from producers.gateway.batches.errors import BatchTaken, FileStoreFailed
from producers.gateway.batches.log import BatchLog
from producers.gateway.batches.service import BatchService
from producers.gateway.batches.tenure import Tenure
from tests.gateway import Script, ScriptedWorker, by_words, principal

ACME = principal("acme")
URL = "/v1/completions"


def until(condition: Callable[[], bool], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        threading.Event().wait(0.02)


class Platform:
    """A bus and a worker; replicas without HTTP."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self.bus = InMemoryBus()
        self.worker = ScriptedWorker(self.bus)
        stack.callback(self.worker.close)
        self.log = BatchLog(self.bus, source="onlooker")
        stack.callback(self.log.close)
        self._settings = GatewaySettings(files_url=str(folder))
        self._stack = stack
        self._folder = folder

    def replica(self, name: str) -> BatchService:
        made = BatchService(self.bus, self._settings, source=name, known=lambda _: True)
        self._stack.callback(made.close)
        return made

    def start(self, replica: BatchService, lines: int, *, tenant: str = "acme") -> str:
        rows = [
            {
                "custom_id": f"c{number}",
                "method": "POST",
                "url": URL,
                "body": {"model": "default", "prompt": f"one {number}"},
            }
            for number in range(lines)
        ]
        content = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
        caller = principal(tenant)
        file = replica.upload(caller, "in", io.BytesIO(content), len(content))
        return replica.create(
            caller, input_file_id=file.file_id, endpoint=URL, metadata={}
        ).batch_id

    def standing(self, batch_id: str) -> BatchChanged:
        found = self.log.batch(batch_id)
        assert found is not None
        return found.event

    def owner(self, batch_id: str) -> str | None:
        found = self.log.batch(batch_id)
        return None if found is None else found.owner

    def status(self, batch_id: str) -> str:
        found = self.log.batch(batch_id)
        return "" if found is None else found.event.status

    def write(self, event: BatchChanged, source: str) -> None:
        publisher = self.bus.publisher()
        send(publisher, catalogue.BATCHES.name, event.batch_id, event, source=source).result(10)
        publisher.close()


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[Platform]:
    with ExitStack() as stack:
        yield Platform(stack, tmp_path)


def held(gate: threading.Event) -> Callable[[GenerationRequest], Script]:
    def script(request: GenerationRequest) -> Script:
        gate.wait(60)
        return by_words(request)

    return script


def test_a_runner_that_lost_its_batch_stops_and_changes_nothing(
    platform: Platform, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    gate = threading.Event()
    platform.worker.script = held(gate)
    batch_id = platform.start(platform.replica("first"), 5)
    until(lambda: len(platform.worker.raw) == 5)
    first = platform.owner(batch_id)
    assert first is not None
    assert first.startswith("first#")
    second = Tenure(platform.log, batch_id, runner="second#x", now_ms=lambda: 7)
    second.claim(first)
    gate.set()
    until(lambda: f"{batch_id} is now the batch of second#x" in caplog.text)
    assert platform.owner(batch_id) == "second#x"
    assert platform.status(batch_id) == "in_progress"
    with pytest.raises(BatchTaken):
        Tenure(platform.log, batch_id, runner=first, now_ms=lambda: 7).claim("third#x")
    second.end("completed", output=None, errors=None, completed=5, failed=0)
    for late in (second.current, lambda: second.progress(completed=1, failed=0)):
        with pytest.raises(BatchTaken):
            late()


def test_a_record_that_came_too_late_does_not_outlive_compaction(platform: Platform) -> None:
    replica = platform.replica("first")
    batch_id = platform.start(replica, 3)
    until(lambda: platform.status(batch_id) == "completed")
    done = platform.standing(batch_id)
    # A runner that was cut off for long writes what it thinks is next.
    platform.write(
        msgspec.structs.replace(done, revision=2, status="in_progress", output_file_id=None),
        "zombie#x",
    )

    def last() -> BatchChanged:
        records = [
            record
            for record in platform.bus.records(catalogue.BATCHES.name)
            if record.key_text == batch_id
        ]
        return codec.decode(records[-1].value or b"", BatchChanged)

    until(lambda: last().status == "completed")
    assert last() == msgspec.structs.replace(done, revision=done.revision + 1)
    assert platform.standing(batch_id).output_file_id == done.output_file_id


def test_replicas_share_batches_and_take_over_from_one_that_leaves(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "RUNNING", 64)
    gate = threading.Event()
    platform.worker.script = held(gate)
    replicas = [platform.replica(name) for name in ("one", "two")]
    batches: dict[str, str] = {}
    while len(set(batches.values())) < 2:
        assert len(batches) < 64, "one replica gets everything"
        made = platform.start(replicas[0], 3)
        until(lambda made=made: platform.owner(made) is not None)  # type: ignore[misc]
        batches[made] = (platform.owner(made) or "").partition("#")[0]
    assert set(batches.values()) == {"one", "two"}
    until(lambda: len(platform.worker.raw) == 3 * len(batches))
    replicas[1].close()
    until(lambda: all((platform.owner(each) or "").startswith("one#") for each in batches))
    gate.set()
    until(lambda: all(platform.status(each) == "completed" for each in batches))
    asked = [record.key for record in platform.worker.raw]
    assert len(asked) == len(set(asked)) == 3 * len(batches)
    assert all(platform.standing(each).completed == 3 for each in batches)


def test_one_tenant_does_not_keep_all_others_waiting(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "RUNNING", 2)
    gates: dict[str, threading.Event] = defaultdict(threading.Event)

    def script(request: GenerationRequest) -> Script:
        gates[request.request_id].wait(60)
        return by_words(request)

    platform.worker.script = script
    replica = platform.replica("first")
    acme = [platform.start(replica, 1) for _ in range(2)]
    until(lambda: len(platform.worker.raw) == 2)
    acme.append(platform.start(replica, 1))
    rival = platform.start(replica, 1, tenant="rival")
    gates[platform.worker.raw[0].key_text].set()
    until(lambda: len(platform.worker.raw) == 3)
    assert platform.worker.requests[2].tenant == "rival"
    assert platform.status(acme[2]) == "validating"
    for record in platform.worker.raw:
        gates[record.key_text].set()
    until(lambda: len(platform.worker.raw) == 4)
    gates[platform.worker.raw[3].key_text].set()
    until(lambda: all(platform.status(each) == "completed" for each in [*acme, rival]))


def test_a_store_that_fails_is_tried_again(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "MOST_BACKOFF_S", 0.1)
    put = store.FolderFiles.put
    failures = iter([True, True, False])

    def unsteady(self: store.FolderFiles, name: str, content: BinaryIO) -> None:
        if next(failures, False):
            raise FileStoreFailed("the disk is full")
        put(self, name, content)

    replica = platform.replica("first")
    gate = threading.Event()
    platform.worker.script = held(gate)
    batch_id = platform.start(replica, 4)
    until(lambda: len(platform.worker.raw) == 4)
    monkeypatch.setattr(store.FolderFiles, "put", unsteady)
    gate.set()
    until(lambda: platform.status(batch_id) == "completed")
    assert next(failures, None) is None
    assert platform.standing(batch_id).completed == 4
    assert len(platform.worker.raw) == 4


def test_a_batch_that_cannot_be_run_ends_at_last(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "MOST_BACKOFF_S", 0.05)
    monkeypatch.setattr(runner, "GIVE_UP_MS", -100_000_000)

    def broken(*_: object) -> None:
        raise FileStoreFailed("the disk is gone")

    replica = platform.replica("first")
    batch_id = platform.start(replica, 1)
    until(lambda: platform.status(batch_id) == "completed")
    monkeypatch.setattr(store.FolderFiles, "open", broken)
    second = replica.create(
        ACME,
        input_file_id=platform.standing(batch_id).input_file_id,
        endpoint=URL,
        metadata={},
    ).batch_id
    until(lambda: platform.status(second) == "failed")
    assert [each.code for each in platform.standing(second).errors] == ["internal_error"]


def test_unreadable_records_are_passed_over(platform: Platform) -> None:
    publisher = platform.bus.publisher()
    publisher.publish(catalogue.BATCHES.name, key=b"b", value=b"{").result(1)
    publisher.close()
    replica = platform.replica("first")
    batch_id = platform.start(replica, 1)
    until(lambda: platform.status(batch_id) == "completed")
    assert replica.fault() is None
