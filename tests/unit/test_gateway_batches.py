"""Files and batches through the official client, over the bus in memory with a scripted worker."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from infra.contracts import catalogue, codec
from infra.contracts.events.gateway import BatchChanged, FileChanged
from infra.contracts.events.generation import GenerationError, GenerationRequest
from infra.testing import InMemoryBus
from producers.gateway.batches import run, state
from producers.gateway.identifiers import parse
from tests.gateway import (
    KnownKeys,
    Running,
    Script,
    ScriptedWorker,
    by_words,
    principal,
    publish,
    running_gateway,
    seed,
)

CHAT = "/v1/chat/completions"


def line(custom_id: str, *, url: str = CHAT, **body: Any) -> dict[str, Any]:
    asked: dict[str, Any] = {"model": "default"}
    if url == CHAT:
        asked["messages"] = [{"role": "user", "content": f"one two {custom_id}"}]
    else:
        asked["prompt"] = f"one two {custom_id}"
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": asked | body}


def jsonl(*lines: Any) -> bytes:
    return b"".join(
        (each if isinstance(each, bytes) else json.dumps(each).encode()) + b"\n" for each in lines
    )


class Platform:
    """A bus, a worker and a gateway with a file store."""

    def __init__(self, stack: ExitStack, folder: Path, **settings: Any) -> None:
        self.bus = InMemoryBus()
        seed(self.bus)
        self.worker = ScriptedWorker(self.bus)
        stack.callback(self.worker.close)
        self.keys = KnownKeys.of("acme", "rival")
        self.folder = folder
        self.stack = stack
        self.first = stack.enter_context(ExitStack())
        """Closes the first gateway."""
        self.gateway = self.replica(self.first, **settings)

    def replica(self, stack: ExitStack | None = None, **settings: Any) -> Running:
        return (stack or self.stack).enter_context(
            running_gateway(self.bus, self.keys, **{"files_url": str(self.folder), **settings})
        )

    def client(self, tenant: str = "acme", gateway: Running | None = None) -> openai.OpenAI:
        client = openai.OpenAI(
            base_url=f"{(gateway or self.gateway).url}/v1", api_key=f"key-{tenant}", max_retries=0
        )
        self.stack.callback(client.close)
        return client

    def http(self) -> httpx.Client:
        headers = {"Authorization": "Bearer key-acme"}
        return self.stack.enter_context(
            httpx.Client(base_url=self.gateway.url, headers=headers, timeout=30)
        )

    def start(self, content: bytes, *, endpoint: Any = CHAT, tenant: str = "acme") -> Any:
        client = self.client(tenant)
        file = client.files.create(file=("in.jsonl", content), purpose="batch")
        return client.batches.create(
            input_file_id=file.id, endpoint=endpoint, completion_window="24h"
        )

    def wait(self, batch_id: str, *statuses: str, tenant: str = "acme") -> Any:
        client = self.client(tenant)
        wanted = statuses or tuple(state.FINISHED)
        until(lambda: client.batches.retrieve(batch_id).status in wanted)
        return client.batches.retrieve(batch_id)

    def read(self, file_id: str | None) -> list[Any]:
        assert file_id is not None
        text = self.client().files.content(file_id).text
        return [json.loads(each) for each in text.splitlines()]


def until(condition: Callable[[], bool], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        threading.Event().wait(0.02)


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[Platform]:
    with ExitStack() as stack:
        yield Platform(stack, tmp_path / "files")


# Files.


def test_a_file_is_kept_shown_and_deleted(platform: Platform) -> None:
    client = platform.client()
    made = client.files.create(file=("asks.jsonl", b"some\nbytes"), purpose="batch")
    assert (made.filename, made.bytes, made.purpose) == ("asks.jsonl", 10, "batch")
    assert client.files.retrieve(made.id) == made
    assert client.files.content(made.id).read() == b"some\nbytes"
    assert [each.id for each in client.files.list()] == [made.id]
    assert client.files.delete(made.id).deleted is True
    assert list(client.files.list()) == []
    assert list(platform.folder.iterdir()) == []
    for call in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError):
            call(made.id)


def test_lists_come_in_pages(platform: Platform) -> None:
    client = platform.client()
    ids = [client.files.create(file=(f"{number}", b"x"), purpose="batch").id for number in range(5)]
    assert {each.id for each in client.files.list(limit=2)} == set(ids)
    newest = [each.id for each in client.files.list()]
    assert [each.id for each in client.files.list(order="asc", limit=2)] == newest[::-1]
    first = client.files.list(limit=3)
    assert (len(first.data), first.has_more) == (3, True)
    rest = client.files.list(limit=3, after=first.data[-1].id)
    assert ([each.id for each in rest.data], rest.has_more) == (newest[3:], False)
    assert list(client.files.list(purpose="batch_output")) == []
    batches = [platform.start(jsonl(line("a"))).id for _ in range(3)]
    page = client.batches.list(limit=2)
    assert (len(page.data), page.has_more) == (2, True)
    assert {each.id for each in page} == set(batches)
    for wrong in ({"limit": 0}, {"limit": 10_001}, {"after": "file-nobody"}, {"order": "up"}):
        with pytest.raises(openai.BadRequestError, match=next(iter(wrong))):
            client.files.list(extra_query=wrong)


def test_a_file_is_its_tenants_alone(platform: Platform) -> None:
    file = platform.client().files.create(file=("a", b"secret"), purpose="batch")
    batch = platform.start(jsonl(line("a")))
    rival = platform.client("rival")
    assert list(rival.files.list()) == []
    assert list(rival.batches.list()) == []
    for call in (rival.files.retrieve, rival.files.content, rival.files.delete):
        with pytest.raises(openai.NotFoundError):
            call(file.id)
    for call in (rival.batches.retrieve, rival.batches.cancel):
        with pytest.raises(openai.NotFoundError):
            call(batch.id)
    with pytest.raises(openai.NotFoundError):
        rival.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
    for path in ("..", "%2e%2e%2fetc", ".staging"):
        answer = platform.http().get(f"/v1/files/{path}/content")
        assert answer.status_code == 404


def test_uploads_are_refused_for_what_is_wrong(platform: Platform) -> None:
    client = platform.client()
    with pytest.raises(openai.BadRequestError, match="purpose"):
        client.files.create(file=("a", b"x"), purpose="fine-tune")
    http = platform.http()
    upload = {"file": ("a", b"x")}
    answer = http.post("/v1/files", files=upload, data={"purpose": "batch", "expires_after": "1"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "expires_after")
    answer = http.post("/v1/files", files={"other": b"x"}, data={"purpose": "batch"})
    assert answer.status_code == 400
    answer = http.post("/v1/files", json={"purpose": "batch"})
    assert answer.status_code == 415
    answer = http.post(
        "/v1/files", content=b"nonsense", headers={"content-type": "multipart/form-data"}
    )
    assert answer.status_code == 400
    assert "error" in answer.json()
    assert list(client.files.list()) == []


def test_an_upload_is_bounded(tmp_path: Path) -> None:
    with ExitStack() as stack:
        platform = Platform(stack, tmp_path / "files", max_upload_bytes=3_000_000)
        client = platform.client()
        kept = client.files.create(file=("a", b"x" * 2_500_000), purpose="batch")
        assert kept.bytes == 2_500_000
        with pytest.raises(openai.APIStatusError) as refused:
            client.files.create(file=("a", b"x" * 3_000_001), purpose="batch")
        assert refused.value.status_code == 413
        assert len(list(platform.folder.iterdir())) == 1


def test_a_role_is_needed(platform: Platform) -> None:
    platform.keys.principals["key-acme"] = principal("acme", "feedback")
    client = platform.client()
    with pytest.raises(openai.PermissionDeniedError):
        client.files.create(file=("a", b"x"), purpose="batch")
    with pytest.raises(openai.PermissionDeniedError):
        client.batches.list()


def test_without_a_store_there_are_no_files(tmp_path: Path) -> None:
    with ExitStack() as stack:
        platform = Platform(stack, tmp_path, files_url="")
        for path in ("files", "batches"):
            assert platform.http().get(f"/v1/{path}").status_code == 404
        assert "/v1/files" not in platform.http().get("/openapi.json").json()["paths"]


# Batches.


def test_every_line_is_answered_in_order(platform: Platform) -> None:
    client = platform.client()
    content = jsonl(*(line(f"c{number}", max_tokens=2) for number in range(20)))
    file = client.files.create(file=("in.jsonl", content), purpose="batch")
    made = client.batches.create(
        input_file_id=file.id,
        endpoint=CHAT,
        completion_window="24h",
        metadata={"team": "search"},
    )
    assert (made.status, made.metadata) == ("validating", {"team": "search"})
    assert made.expires_at == made.created_at + 24 * 3600
    done = platform.wait(made.id)
    assert done.status == "completed"
    assert done.request_counts.model_dump() == {"total": 20, "completed": 20, "failed": 0}
    assert done.error_file_id is None
    assert done.errors is None
    for moment in (done.in_progress_at, done.finalizing_at, done.completed_at):
        assert made.created_at <= moment <= made.created_at + 60
    rows = platform.read(done.output_file_id)
    assert [row["custom_id"] for row in rows] == [f"c{number}" for number in range(20)]
    assert len({row["id"] for row in rows}) == 20
    for row in rows:
        assert row["error"] is None
        assert row["response"]["status_code"] == 200
        answer = openai.types.chat.ChatCompletion.model_validate(row["response"]["body"])
        assert answer.choices[0].message.content == f"{row['custom_id']} two "
        assert answer.id == row["response"]["request_id"]
    output = client.files.retrieve(done.output_file_id)
    assert output.purpose == "batch_output"
    assert output.bytes == len(client.files.content(output.id).content)
    assert [each.id for each in client.batches.list()] == [made.id]


def test_lines_are_asked_once_in_the_batch_class_with_ids_that_can_be_used(
    platform: Platform,
) -> None:
    made = platform.start(
        jsonl(*(line(f"c{number}", url="/v1/completions", user="ann") for number in range(3))),
        endpoint="/v1/completions",
    )
    done = platform.wait(made.id)
    rows = platform.read(done.output_file_id)
    assert [row["response"]["body"]["choices"][0]["text"] for row in rows] == [
        f"c{number} two one " for number in range(3)
    ]
    assert platform.bus.records(catalogue.REQUESTS.name) == []
    records = platform.bus.records(catalogue.REQUESTS_BATCH.name)
    asked = [codec.decode(each.value or b"", GenerationRequest) for each in records]
    assert {each.request_id for each in asked} == {row["response"]["request_id"] for row in rows}
    for request in asked:
        assert (request.tenant, request.user) == ("acme", "ann")
        assert request.submit_id == request.request_id
        assert request.deadline_ms is not None
        assert abs(request.deadline_ms - 1000 * done.expires_at) < 2_000
        known = parse(request.request_id)
        assert known is not None
        assert known.belongs_to("acme")
        assert request.reply is not None
        assert known.partition == request.reply.partition
    shown = platform.http().get(f"/v1/requests/{asked[0].request_id}").json()
    assert shown["status"] == "completed"
    said = platform.http().post(
        "/v1/feedback", json={"request_id": asked[0].request_id, "rating": "up"}
    )
    assert said.status_code == 201


def test_a_line_that_cannot_run_is_an_entry_of_the_error_file(platform: Platform) -> None:
    platform.keys.principals["key-acme"] = principal(
        "acme", models=frozenset({"default", "nowhere"})
    )

    def script(request: GenerationRequest) -> Script:
        if "worker-refuses" in request.messages[0].content:
            error = GenerationError(code="prompt_too_long", message="too long by 5 tokens")
            return Script((), finish_reason="error", error=error)
        return by_words(request)

    platform.worker.script = script
    made = platform.start(
        jsonl(
            line("good"),
            line("hot", temperature=9),
            line("streams", stream=True),
            line("hides", background=True),
            line("unknown", model="nowhere"),
            line("forbidden", model="other"),
            line("no-model", model=None),
            line("worker-refuses"),
            line("also-good"),
        )
    )
    done = platform.wait(made.id)
    assert done.status == "completed"
    assert done.request_counts.model_dump() == {"total": 9, "completed": 2, "failed": 7}
    assert [row["custom_id"] for row in platform.read(done.output_file_id)] == ["good", "also-good"]
    failed = {row["custom_id"]: row["response"] for row in platform.read(done.error_file_id)}
    told = {
        name: (response["status_code"], response["body"]["error"]["code"])
        for name, response in failed.items()
    }
    assert told == {
        "hot": (400, "invalid_value"),
        "streams": (400, "unsupported_parameter"),
        "hides": (400, "unsupported_parameter"),
        "unknown": (404, "model_not_found"),
        "forbidden": (403, "insufficient_permissions"),
        "no-model": (400, "invalid_value"),
        "worker-refuses": (400, "prompt_too_long"),
    }
    assert failed["hot"]["body"]["error"]["param"] == "temperature"
    assert failed["hot"]["request_id"] is None
    assert failed["worker-refuses"]["request_id"] is not None


def test_a_file_with_a_line_that_is_no_request_is_unusable(platform: Platform) -> None:
    made = platform.start(
        jsonl(
            line("a"),
            b"{broken",
            line("a"),
            line("b", url="/v1/completions"),
            {**line("c"), "method": "GET"},
            {"custom_id": "d", "method": "POST", "url": CHAT},
        )
    )
    done = platform.wait(made.id)
    assert done.status == "failed"
    assert done.failed_at is not None
    assert done.output_file_id is None
    assert [(each.line, each.code, each.param) for each in done.errors.data] == [
        (2, "invalid_json_line", None),
        (3, "duplicate_custom_id", "custom_id"),
        (4, "invalid_url", "url"),
        (5, "invalid_method", "method"),
        (6, "missing_required_parameter", "body"),
    ]
    assert platform.bus.records(catalogue.REQUESTS_BATCH.name) == []
    empty = platform.wait(platform.start(b"\n\n").id)
    assert (empty.status, empty.errors.data[0].code) == ("failed", "empty_file")


def test_what_a_batch_may_be(platform: Platform) -> None:
    client = platform.client()
    file = client.files.create(file=("a", jsonl(line("a"))), purpose="batch")
    good: dict[str, Any] = {
        "input_file_id": file.id,
        "endpoint": CHAT,
        "completion_window": "24h",
    }
    for wrong in (
        {"endpoint": "/v1/embeddings"},
        {"completion_window": "1h"},
        {"metadata": {"k" * 65: "v"}},
        {"output_expires_after": {"anchor": "created_at", "seconds": 3600}},
    ):
        with pytest.raises(openai.BadRequestError, match=next(iter(wrong))):
            client.batches.create(**{**good, **wrong})
    with pytest.raises(openai.NotFoundError):
        client.batches.create(**{**good, "input_file_id": "file-nobody"})
    done = platform.wait(client.batches.create(**good).id)
    with pytest.raises(openai.BadRequestError, match="batch_output"):
        client.batches.create(**{**good, "input_file_id": done.output_file_id})
    with pytest.raises(openai.ConflictError, match="is completed"):
        client.batches.cancel(done.id)
    with pytest.raises(openai.NotFoundError):
        client.batches.retrieve("batch_nobody")


def test_no_more_than_the_window_is_in_flight(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "IN_FLIGHT", 4)
    gate = threading.Event()

    def script(request: GenerationRequest) -> Script:
        gate.wait(30)
        return by_words(request)

    platform.worker.script = script
    made = platform.start(jsonl(*(line(f"c{number}") for number in range(9))))
    until(lambda: len(platform.worker.requests) == 4)
    assert platform.wait(made.id, "in_progress").request_counts.total == 9
    gate.set()
    assert platform.wait(made.id).request_counts.completed == 9
    assert len(platform.worker.raw) == 9


def test_cancelling_keeps_what_is_answered(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "IN_FLIGHT", 3)
    monkeypatch.setattr(run, "PROGRESS_S", 0.0)
    stopped = platform.worker.cancelled

    def script(request: GenerationRequest) -> Script:
        if "quick" not in request.messages[0].content:
            return Script(
                ("a ", "b "), before_piece=lambda _: until(lambda: request.request_id in stopped)
            )
        return by_words(request)

    platform.worker.script = script
    lines = [line(f"quick{number}") for number in range(2)]
    lines += [line(f"slow{number}") for number in range(8)]
    made = platform.start(jsonl(*lines))
    client = platform.client()
    until(lambda: client.batches.retrieve(made.id).request_counts.completed == 2)
    with pytest.raises(openai.ConflictError, match=made.id):
        client.files.delete(made.input_file_id)
    told = client.batches.cancel(made.id)
    assert told.status == "cancelling"
    assert told.cancelling_at is not None
    done = platform.wait(made.id)
    assert (done.status, done.cancelled_at is not None) == ("cancelled", True)
    assert client.batches.cancel(made.id).status == "cancelled"
    assert [row["custom_id"] for row in platform.read(done.output_file_id)] == ["quick0", "quick1"]
    errors = platform.read(done.error_file_id)
    assert [row["custom_id"] for row in errors] == [f"slow{number}" for number in range(8)]
    assert {row["error"]["code"] for row in errors} == {"batch_cancelled"}
    assert all(row["response"] is None for row in errors)
    assert len(platform.worker.raw) == 5
    client.files.delete(made.input_file_id)


def test_a_batch_expires_with_what_it_has(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "WIND_DOWN_S", 0.5)
    monkeypatch.setattr(run, "IN_FLIGHT", 2)
    client = platform.client()
    file = client.files.create(
        file=("a", jsonl(line("quick"), *(line(f"c{n}") for n in range(4)))), purpose="batch"
    )
    stopping = threading.Event()

    def script(request: GenerationRequest) -> Script:
        if "quick" in request.messages[0].content:
            return by_words(request)
        return Script(("a ",), before_piece=lambda _: stopping.wait(60) and None)

    platform.worker.script = script
    now = time.time_ns() // 1_000_000
    publish(
        platform.bus,
        catalogue.BATCHES.name,
        batch_id := "batch_0003" + "0" * 28,
        BatchChanged(
            batch_id=batch_id,
            tenant="acme",
            revision=0,
            status="validating",
            endpoint=CHAT,
            input_file_id=file.id,
            created_at_ms=now,
            expires_at_ms=now + 3_000,
        ),
    )
    done = platform.wait(batch_id)
    stopping.set()
    assert (done.status, done.expired_at is not None) == ("expired", True)
    assert [row["custom_id"] for row in platform.read(done.output_file_id)] == ["quick"]
    errors = platform.read(done.error_file_id)
    assert {row["error"]["code"] for row in errors} == {"batch_expired"}
    assert len(errors) == 4
    assert len(platform.worker.raw) == 3


def test_an_input_that_is_gone_fails_the_batch(platform: Platform) -> None:
    file = platform.client().files.create(file=("a", jsonl(line("a"))), purpose="batch")
    (platform.folder / file.id).unlink()
    made = platform.client().batches.create(
        input_file_id=file.id, endpoint=CHAT, completion_window="24h"
    )
    done = platform.wait(made.id)
    assert (done.status, done.errors.data[0].code) == ("failed", "file_not_found")


# Several replicas, and restarts.


def test_any_replica_shows_and_cancels_a_batch(platform: Platform) -> None:
    other = platform.client(gateway=platform.replica())
    stopping = threading.Event()
    platform.worker.script = lambda _: Script(
        ("a ",), before_piece=lambda _: stopping.wait(30) and None
    )
    made = platform.start(jsonl(line("a")))
    assert other.batches.retrieve(made.id).id == made.id
    until(lambda: other.batches.retrieve(made.id).status == "in_progress")
    other.batches.cancel(made.id)
    stopping.set()
    assert platform.wait(made.id).status == "cancelled"


def test_a_batch_outlives_its_gateway(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "IN_FLIGHT", 5)
    hold = threading.Event()

    def script(request: GenerationRequest) -> Script:
        if len(platform.worker.requests) > 8:
            hold.wait(30)
        return by_words(request)

    platform.worker.script = script
    made = platform.start(jsonl(*(line(f"c{number}") for number in range(30))))
    until(lambda: len(platform.worker.requests) > 8)
    platform.first.close()
    asked_by_first = len(platform.worker.raw)
    platform.gateway = platform.replica()
    hold.set()
    done = platform.wait(made.id)
    assert done.status == "completed"
    rows = platform.read(done.output_file_id)
    assert [row["custom_id"] for row in rows] == [f"c{number}" for number in range(30)]
    assert asked_by_first < 30
    asked = [record.key for record in platform.worker.raw]
    assert len(asked) == len(set(asked)) == 30


def test_files_are_whole_before_they_are_told(platform: Platform) -> None:
    made = platform.start(jsonl(line("a")))
    done = platform.wait(made.id)
    order = [
        (each.timestamp_ms, each.offset)
        for topic in (catalogue.FILES.name,)
        for each in platform.bus.records(topic)
    ]
    assert order == sorted(order)
    events = [
        codec.decode(each.value or b"", FileChanged)
        for each in platform.bus.records(catalogue.FILES.name)
    ]
    assert events[-1].file_id == done.output_file_id
    assert {path.name for path in platform.folder.iterdir()} == {
        made.input_file_id,
        done.output_file_id,
    }
