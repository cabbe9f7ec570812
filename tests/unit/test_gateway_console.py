"""The console's page and its data routes, over the bus in memory."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from infra.contracts import catalogue, codec
from infra.contracts.events.base import Event
from infra.contracts.events.generation import GenerationResult, Timings
from infra.contracts.events.model import (
    ArmFigures,
    GateCheck,
    ModelVersionPublished,
    RolloutChanged,
    RolloutDecided,
)
from infra.contracts.events.platform import ConfigChanged, WorkerStatusReported
from infra.settings import GatewaySettings
from infra.testing import InMemoryBus
from producers.gateway.app import create_app
from producers.gateway.console.assets import assets
from producers.gateway.console.desk import Console
from producers.gateway.service import GatewayService
from producers.gateway.views import Views
from tests.gateway import KnownKeys, principal, publish, seed

OPERATOR, CALLER, NARROW = "operators-key", "callers-key", "narrow-key"
READS = (
    "me",
    "status",
    "live",
    "versions",
    "rollouts",
    "settings",
    "settings/worker.max_waiting",
    "settings/worker.max_waiting/history",
    "dead-letters",
    "dead-letters/letter?id=generation.requests/0",
    "traces",
    "traces/abc",
)
CHANGES = {
    "rollouts/default": {"action": "pin", "revision": 1, "reason": "why"},
    "settings/worker.max_waiting": {"value": "64", "revision": 0, "reason": "why"},
    "settings/worker.max_waiting/revert": {"revision": 0, "reason": "why"},
    "dead-letters/replay": {"ids": ["generation.requests/0"], "reason": "why"},
    "dead-letters/drop": {"ids": ["generation.requests/0"], "reason": "why"},
}


class Desk:
    """A gateway's application on a bus that a test may write to."""

    def __init__(self, bus: InMemoryBus, app: FastAPI, views: Views) -> None:
        self.bus = bus
        self.app = app
        self.views = views

    def client(self, key: str | None = OPERATOR, **headers: str) -> httpx.AsyncClient:
        given = headers if key is None else {"Authorization": f"Bearer {key}", **headers}
        return httpx.AsyncClient(
            transport=httpx.ASGITransport(app=self.app, raise_app_exceptions=False),
            base_url="http://gateway",
            headers=given,
        )

    async def get(self, path: str, key: str | None = OPERATOR) -> httpx.Response:
        async with self.client(key) as client:
            return await client.get(f"/console/api/{path}")

    async def post(self, path: str, body: Any, **headers: str) -> httpx.Response:
        async with self.client(**headers) as client:
            return await client.post(f"/console/api/{path}", json=body)

    async def until(self, path: str, wanted: Callable[[Any], bool], timeout_s: float = 20.0) -> Any:
        """What a route says once it says that: the views follow the bus in a thread."""
        deadline = time.monotonic() + timeout_s
        while True:
            found = (await self.get(path)).json()
            if wanted(found):
                return found
            assert time.monotonic() < deadline, f"{path} still says {found}"

    def events(self, topic: str, kind: type[Event]) -> list[Any]:
        return [codec.decode(record.value or b"", kind) for record in self.bus.records(topic)]


def publish_version(bus: InMemoryBus, name: str, **fields: Any) -> None:
    version = ModelVersionPublished(
        model="default",
        version=name,
        kind="full",
        artifact_uri="file:///nowhere",
        manifest=(),
        created_at_ms=1,
        **fields,
    )
    publish(bus, catalogue.REGISTRY.name, f"default/{name}", version)


def dead_letter(bus: InMemoryBus, value: bytes = b'{"secret": 1.0}') -> None:
    headers = codec.dead_letter_headers(
        [("ce_source", b"shop")],
        topic=catalogue.REQUESTS.name,
        partition=4,
        offset=9,
        error=ValueError("no prompt"),
    )
    publisher = bus.publisher()
    publisher.publish(f"{catalogue.REQUESTS.name}.dlq", key=b"k", value=value, headers=headers)


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    bus = InMemoryBus()
    seed(bus)
    publish_version(bus, "2", metrics={"heldout_bits_per_byte_after": 0.9, "win_rate": 0.6})
    views = Views(bus)
    settings = GatewaySettings()
    service = GatewayService(bus, views, settings, source="gateway-test")
    keys = KnownKeys(
        {
            OPERATOR: principal("acme"),
            CALLER: principal("acme", "caller", "feedback"),
            NARROW: principal("acme", "operator", models=frozenset({"other"})),
        }
    )
    console = Console(bus, service, source="gateway-test", span_directory=tmp_path)
    app = create_app(bus, service, keys, settings, source="gateway-test", console=console)
    async with app.router.lifespan_context(app):
        yield Desk(bus, app, views)
    views.close()


async def test_the_page_and_its_files_are_public_and_may_load_nothing_else(desk: Desk) -> None:
    async with desk.client(None) as client:
        moved = await client.get("/console")
        assert (moved.status_code, moved.headers["location"]) == (307, "console/")
        page = await client.get("/console/")
        paths = ["/console/", *(f"/console/assets/{name}" for name in assets())]
        assert "/console/assets/vendor/uplot/LICENSE" in paths
        for path in paths:
            found = await client.get(path)
            assert found.status_code == 200, path
            policy = dict(
                part.split(" ", 1) for part in found.headers["content-security-policy"].split("; ")
            )
            assert policy == {
                "default-src": "'none'",
                "script-src": "'self'",
                "style-src": "'self'",
                "connect-src": "'self'",
                "img-src": "'self' data:",
                "base-uri": "'none'",
                "form-action": "'none'",
                "frame-ancestors": "'none'",
            }
            assert found.headers["x-content-type-options"] == "nosniff"
            assert found.headers["referrer-policy"] == "no-referrer"
            assert found.headers["cross-origin-opener-policy"] == "same-origin"
            assert "set-cookie" not in found.headers
            again = await client.get(path, headers={"If-None-Match": found.headers["etag"]})
            assert (again.status_code, again.content) == (304, b"")
        assert "<script>" not in page.text
        assert "style=" not in page.text
        script = await client.get("/console/assets/app.js")
        assert script.headers["content-type"].startswith("text/javascript")
        for path in ("nothing.js", "../routes.py", "%2e%2e/routes.py", ""):
            assert (await client.get(f"/console/assets/{path}")).status_code == 404
    for name, asset in assets().items():
        if name.endswith(".js") and "vendor" not in name:
            assert b"innerHTML" not in asset.body, name


@pytest.mark.parametrize("path", READS)
async def test_data_is_for_operators(desk: Desk, path: str) -> None:
    assert (await desk.get(path, None)).status_code == 401
    assert (await desk.get(path, "wrong")).status_code == 401
    refused = await desk.get(path, CALLER)
    assert refused.status_code == 403
    assert "operator" in refused.json()["error"]["message"]
    allowed = await desk.get(path)
    assert allowed.status_code in (200, 404, 409)
    if allowed.status_code == 200:
        assert allowed.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("path", CHANGES)
async def test_changes_are_refused_from_elsewhere(desk: Desk, path: str) -> None:
    before = {topic: len(desk.bus.records(topic)) for topic in desk.bus.logs}
    for site in ("cross-site", "same-site"):
        refused = await desk.post(path, CHANGES[path], **{"Sec-Fetch-Site": site})
        assert refused.status_code == 403
        assert refused.json()["error"]["code"] == "cross_site"
    text = json.dumps(CHANGES[path])
    async with desk.client() as client:
        for kind in ("text/plain", "application/x-www-form-urlencoded"):
            refused = await client.post(
                f"/console/api/{path}", content=text, headers={"Content-Type": kind}
            )
            assert refused.status_code == 415
        bare = client.build_request("POST", f"/console/api/{path}", content=text)
        assert "content-type" not in bare.headers
        assert (await client.send(bare)).status_code == 415
    async with desk.client(CALLER) as client:
        refused = await client.post(f"/console/api/{path}", json=CHANGES[path])
        assert refused.status_code == 403
    async with desk.client(None) as client:
        refused = await client.post(f"/console/api/{path}", json=CHANGES[path])
        assert refused.status_code == 401
    assert {topic: len(desk.bus.records(topic)) for topic in desk.bus.logs} == before


async def test_results_become_figures_and_workers_are_marked_when_silent(desk: Desk) -> None:
    now_ms = time.time_ns() // 1_000_000
    for number in range(4):
        result = GenerationResult(
            request_id=f"r{number}",
            submit_id="s",
            model="default",
            prompt="p",
            text="t",
            finish_reason="error" if number == 0 else "stop",
            prompt_tokens=1,
            output_tokens=10,
            model_versions=("1",),
            created_at_ms=now_ms,
            finished_at_ms=now_ms,
            timings=Timings(ttft_ms=80.0),
        )
        publish(desk.bus, catalogue.RESULTS.name, f"r{number}", result)
    desk.bus.publisher().publish(catalogue.RESULTS.name, key=b"bad", value=b"{")
    quiet = WorkerStatusReported(
        worker_id="w2", state="ready", versions={"default": "1"}, reported_at_ms=now_ms - 60_000
    )
    publish(desk.bus, catalogue.WORKERS.name, "w2", quiet)

    def counted(found: Any) -> bool:
        failed = [share for share in found["series"]["failed_share"] if share is not None]
        return bool(failed) and len(found["workers"]) == 2

    found = await desk.until("live", counted)
    series = found["series"]
    assert sum(value or 0 for value in series["requests_per_s"]) > 0
    assert len({len(values) for values in series.values()}) == 1
    assert [value for value in series["ttft_p50_ms"] if value is not None][-1] == pytest.approx(
        80, rel=0.06
    )
    assert [(one["worker_id"], one["silent"]) for one in found["workers"]] == [
        ("w1", False),
        ("w2", True),
    ]
    status = await desk.until("status", lambda found: found["workers_silent"] == 1)
    assert status["fault"] is None
    assert status["workers_ready"] == 1
    assert status["models"] == [{"model": "default", "stable": "1", "candidate": None}]


async def test_versions_show_their_measures_and_stage(desk: Desk) -> None:
    second, first = (await desk.get("versions")).json()["versions"]
    assert (first["version"], first["stage"], first["bits_per_byte"]) == ("1", "stable", None)
    assert (second["stage"], second["bits_per_byte"], second["win_rate"]) == (
        "registered",
        0.9,
        0.6,
    )
    assert (await desk.get("versions", NARROW)).json() == {"versions": []}


async def test_a_rollout_is_changed_by_the_registrys_rules(desk: Desk) -> None:
    asked = {"action": "canary", "version": "2", "weight": 0.25, "unit": "tenant", "reason": "try"}
    done = await desk.post("rollouts/default", {**asked, "revision": 1})
    assert done.status_code == 200
    changed = desk.events(catalogue.ROLLOUTS.name, RolloutChanged)[-1]
    assert done.json()["rollout"]["revision"] == changed.revision == 2
    assert (changed.state, changed.candidate, changed.candidate_weight, changed.unit) == (
        "canary",
        "2",
        0.25,
        "tenant",
    )
    assert (changed.actor, changed.reason) == ("acme/somebody", "try")
    for action in ("pin", "unpin", "promote", "rollback"):
        body = {"action": action, "revision": changed.revision, "reason": "on", "version": "2"}
        assert (await desk.post("rollouts/default", body)).status_code == 200
        changed = desk.events(catalogue.ROLLOUTS.name, RolloutChanged)[-1]
    assert (changed.revision, changed.stable, changed.rolled_back) == (6, "1", ("2",))


@pytest.mark.parametrize(
    ("changes", "status", "code"),
    [
        ({"revision": 0}, 409, "moved_on"),
        ({"revision": 2}, 409, "moved_on"),
        ({"version": "9"}, 409, "illegal_transition"),
        ({"version": "1"}, 409, "illegal_transition"),
        ({"weight": 0.0}, 409, "illegal_transition"),
        ({"weight": None}, 409, "illegal_transition"),
        ({"action": "promote", "version": None}, 409, "illegal_transition"),
        ({"weight": 1.5}, 400, "invalid_value"),
        ({"reason": ""}, 400, "invalid_value"),
        ({"action": "delete"}, 400, "invalid_value"),
        ({"actor": "root"}, 400, "unsupported_parameter"),
    ],
)
async def test_a_change_of_a_rollout_that_cannot_be_is_refused(
    desk: Desk, changes: dict[str, Any], status: int, code: str
) -> None:
    good = {
        "action": "canary",
        "version": "2",
        "weight": 0.25,
        "unit": "user",
        "reason": "try",
        "revision": 1,
    }
    refused = await desk.post("rollouts/default", {**good, **changes})
    assert (refused.status_code, refused.json()["error"]["code"]) == (status, code)
    if code == "moved_on":
        assert "1 is stable, revision 1" in refused.json()["error"]["message"]
    assert len(desk.bus.records(catalogue.ROLLOUTS.name)) == 1


async def test_a_key_for_other_models_changes_no_rollout(desk: Desk) -> None:
    async with desk.client(NARROW) as client:
        refused = await client.post(
            "/console/api/rollouts/default", json=CHANGES["rollouts/default"]
        )
    assert refused.status_code == 403
    assert (await desk.get("rollouts", NARROW)).json()["models"] == []


async def test_decisions_are_shown_with_the_figures_of_this_experiment(desk: Desk) -> None:
    asked = {"action": "canary", "version": "2", "weight": 0.1, "unit": "user", "reason": "try"}
    done = (await desk.post("rollouts/default", {**asked, "revision": 1})).json()
    experiment = done["rollout"]["experiment"]
    check = GateCheck(
        name="errors", passed=False, value=0.3, low=0.2, high=0.4, limit=0.1, samples=9, reason="r"
    )
    for look, name in ((1, "an older one"), (2, experiment)):
        decided = RolloutDecided(
            model="default",
            experiment=name,
            revision=2,
            verdict="hold",
            reason="too little",
            decided_at_ms=look,
            look=look,
            confidence=0.95,
            stable=ArmFigures(version="1", requests=10),
            candidate=ArmFigures(version="2", requests=3),
            checks=(check,),
        )
        publish(desk.bus, catalogue.DECISIONS.name, "default", decided)
    found = await desk.until("rollouts", lambda found: len(found["models"][0]["decisions"]) == 2)
    (model,) = found["models"]
    assert [one["look"] for one in model["decisions"]] == [2, 1]
    assert model["figures"]["candidate"]["requests"] == 3
    assert (model["figures"]["checks"][0]["judged"], model["figures"]["checks"][0]["breached"]) == (
        True,
        True,
    )
    assert found["weight"] > 0


async def test_a_setting_is_changed_and_reverted_if_it_is_the_one_seen(desk: Desk) -> None:
    key = "worker.max_waiting"
    first = await desk.post(f"settings/{key}", {"value": "64", "revision": 0, "reason": "more"})
    assert first.status_code == 200
    assert (first.json()["value"], first.json()["revision"], first.json()["default"]) == (64, 1, 32)
    stale = await desk.post(f"settings/{key}", {"value": "8", "revision": 0, "reason": "less"})
    assert (stale.status_code, stale.json()["error"]["code"]) == (409, "moved_on")
    assert "64 by acme/somebody, revision 1" in stale.json()["error"]["message"]
    none = await desk.post(f"settings/{key}/revert", {"revision": 1, "reason": "back"})
    assert (none.status_code, none.json()["error"]["code"]) == (409, "no_such_revision")
    await desk.post(f"settings/{key}", {"value": "null", "revision": 1, "reason": "default"})
    back = await desk.post(f"settings/{key}/revert", {"revision": 2, "to": 1, "reason": "back"})
    assert (back.json()["value"], back.json()["revision"]) == (64, 3)
    changes = desk.events(catalogue.CONFIG.name, ConfigChanged)
    assert [(one.value, one.actor) for one in changes] == [
        ("64", "acme/somebody"),
        ("null", "acme/somebody"),
        ("64", "acme/somebody"),
    ]
    history = (await desk.get(f"settings/{key}/history")).json()["changes"]
    assert [(one["revision"], one["outcome"]) for one in history] == [
        (3, "in force"),
        (2, "replaced"),
        (1, "replaced"),
    ]
    listed = await desk.until(
        "settings",
        lambda found: any(one["set"] and one["revision"] == 3 for one in found["settings"]),
    )
    keys = [one["key"] for one in listed["settings"]]
    assert keys == sorted(keys)
    assert "tenants.default.weight" in keys
    assert not any("<" in key for key in keys)


async def test_a_setting_of_text_needs_no_quotes_and_a_wrong_one_says_what_would_do(
    desk: Desk,
) -> None:
    done = await desk.post(
        "settings/workers.w1.log_level", {"value": "DEBUG", "revision": 0, "reason": "look"}
    )
    assert done.json()["value"] == "DEBUG"
    body = {"value": "0", "revision": 0, "reason": "none"}
    refused = await desk.post("settings/worker.max_waiting", body)
    assert refused.status_code == 400
    assert "takes a whole number from 1 to 100000" in refused.json()["error"]["message"]
    unknown = await desk.get("settings/worker.max_waitin")
    assert unknown.status_code == 400
    assert "did you mean worker.max_waiting" in unknown.json()["error"]["message"]
    assert len(desk.bus.records(catalogue.CONFIG.name)) == 1


async def test_dead_letters_are_listed_without_what_they_hold(desk: Desk) -> None:
    dead_letter(desk.bus)
    dead_letter(desk.bus, b"\xff\x00")
    listed = await desk.get("dead-letters")
    assert "secret" not in listed.text
    found = listed.json()
    assert found["topics"][0] == {
        "topic": "generation.requests",
        "open": 2,
        "replayed": 0,
        "dropped": 0,
    }
    newest = {one["id"]: one for one in found["letters"]}["generation.requests/0"]
    assert (newest["error"], newest["message"], newest["state"]) == (
        "ValueError",
        "no prompt",
        "open",
    )
    assert (newest["source_partition"], newest["source_offset"]) == (4, 9)
    shown = (await desk.get("dead-letters/letter?id=generation.requests/0")).json()
    assert shown["value"] == {"form": "json", "text": '{\n  "secret": 1.0\n}'}
    assert ["ce_source", "shop"] in shown["headers"]
    other = (await desk.get("dead-letters/letter?id=generation.requests/1")).json()
    assert other["value"] == {"form": "hex", "text": "ff 00"}
    for name in ("generation.requests/7", "nonsense", "model.registry/0"):
        refused = await desk.get(f"dead-letters/letter?id={name}")
        assert (refused.status_code, refused.json()["error"]["code"]) == (
            409,
            "dead_letter_refused",
        )


async def test_dead_letters_are_replayed_and_dropped_with_who_and_why(desk: Desk) -> None:
    for _ in range(2):
        dead_letter(desk.bus)
    done = await desk.post(
        "dead-letters/replay", {"ids": ["generation.requests/0"], "reason": "fixed"}
    )
    assert done.status_code == 200
    (replayed,) = desk.bus.records(catalogue.REQUESTS.name)
    assert replayed.value == b'{"secret": 1.0}'
    await desk.post("dead-letters/drop", {"ids": ["generation.requests/1"], "reason": "no use"})
    found = (await desk.get("dead-letters")).json()
    assert found["topics"][0] == {
        "topic": "generation.requests",
        "open": 0,
        "replayed": 1,
        "dropped": 1,
    }
    history = {one["id"]: one["history"][0] for one in found["letters"]}
    assert "by acme/somebody" in history["generation.requests/0"]
    assert history["generation.requests/1"].endswith(": no use")
    again = await desk.post(
        "dead-letters/replay", {"ids": ["generation.requests/0"], "reason": "fixed"}
    )
    assert again.status_code == 409
    assert len(desk.bus.records(catalogue.REQUESTS.name)) == 1


async def test_traces_come_from_the_span_folder(desk: Desk, tmp_path: Path) -> None:
    assert (await desk.get("traces")).json() == {"directory": str(tmp_path), "traces": []}
    row = {
        "service": "gateway",
        "name": "send",
        "kind": "internal",
        "trace_id": "abc",
        "span_id": "1",
        "parent_id": None,
        "start_ns": 1_000_000,
        "end_ns": 3_000_000,
        "status": "unset",
        "attributes": {"feedloom.request.id": "r1"},
        "links": [],
    }
    (tmp_path / "gateway-1.jsonl").write_text(json.dumps(row) + "\n")
    (trace,) = (await desk.get("traces")).json()["traces"]
    assert (trace["trace_id"], trace["duration_ms"], trace["request_id"]) == ("abc", 2.0, "r1")
    (span,) = (await desk.get("traces/abc")).json()["spans"]
    assert span["attributes"] == {"feedloom.request.id": "r1"}
    assert (await desk.get("traces/def")).status_code == 404
    desk.app.state.console.span_directory = tmp_path / "gone"
    refused = await desk.get("traces")
    assert refused.status_code == 503
    assert "FEEDLOOM_TELEMETRY__SPAN_DIRECTORY" in refused.json()["error"]["message"]
    desk.app.state.console.span_directory = None
    assert (await desk.get("traces")).json() == {"directory": None, "traces": []}


async def test_the_consoles_routes_are_no_part_of_the_described_api(desk: Desk) -> None:
    assert not [path for path in desk.app.openapi()["paths"] if path.startswith("/console")]
