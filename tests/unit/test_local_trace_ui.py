"""The trace UI: installed once from pinned hashes, where `up` starts it, and who sends to it."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Mapping, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from infra.contracts import codec
from infra.contracts.errors import ConfigurationError, FatalError
from infra.contracts.events.platform import WorkerStatusReported
from infra.local import platform, trace_ui
from infra.local.supervisor import Child, Supervisor
from infra.local.trace_ui import REQUIREMENTS, TraceUi
from infra.settings import KafkaSettings, Settings
from infra.testing import InMemoryBus


def nobody(line: str) -> None:
    """Says nothing."""


def test_the_pin_has_hashes_and_no_address() -> None:
    text = REQUIREMENTS.read_text()
    assert re.search(r"^arize-phoenix==\d+\.\d+\.\d+ ", text, re.MULTILINE)
    pins = [line for line in text.splitlines() if line and not line.startswith((" ", "#"))]
    assert all("==" in line and line.endswith("\\") for line in pins)
    assert "://" not in text


def test_it_is_installed_once_for_each_set_of_pins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []

    def run(command: list[str]) -> None:
        commands.append(command)
        if command[1:3] == ["-m", "venv"]:
            Path(command[3]).mkdir(parents=True)

    monkeypatch.setattr(trace_ui, "_run", run)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    pins = tmp_path / "traces.txt"
    pins.write_text("arize-phoenix==1 --hash=sha256:00\n")
    ui = TraceUi(tmp_path / "home", requirements=pins)
    for _ in range(2):
        ui.install(nobody)
    assert len(commands) == 2
    assert commands[1][1:4] == ["-m", "pip", "install"]
    assert commands[1][-3:] == ["--require-hashes", "-r", str(pins)]
    pins.write_text("arize-phoenix==2 --hash=sha256:00\n")
    (tmp_path / "home" / "tools" / "bin").mkdir(parents=True)
    (tmp_path / "home" / "tools" / "bin" / "uv").touch()
    ui.install(nobody)
    assert commands[3][:3] == [str(tmp_path / "home" / "tools" / "bin" / "uv"), "pip", "install"]


def test_an_installation_that_failed_is_tried_again_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pins = tmp_path / "traces.txt"
    pins.write_text("x==1 --hash=sha256:00\n")

    def failing(command: list[str], **_: object) -> subprocess.CompletedProcess[bytes]:
        return subprocess.CompletedProcess(command, 1, stdout=b"no matching distribution")

    monkeypatch.setattr(subprocess, "run", failing)
    ui = TraceUi(tmp_path / "home", requirements=pins)
    for _ in range(2):
        with pytest.raises(ConfigurationError, match="no matching distribution"):
            ui.install(nobody)
    with pytest.raises(ConfigurationError, match="run from a checkout"):
        TraceUi(tmp_path, requirements=tmp_path / "none.txt").install(nobody)


def test_it_asks_nothing_of_the_internet_and_its_pages_stay_on_this_machine(tmp_path: Path) -> None:
    environment = TraceUi(tmp_path, port=7007).environment()
    assert environment["PHOENIX_HOST"] == "127.0.0.1"
    assert environment["PHOENIX_PORT"] == "7007"
    assert environment["PHOENIX_TELEMETRY_ENABLED"] == "false"
    assert environment["PHOENIX_ALLOW_EXTERNAL_RESOURCES"] == "false"
    assert environment["PHOENIX_WORKING_DIR"].startswith(str(tmp_path))


def test_resource_attributes_of_the_operator_are_kept(tmp_path: Path) -> None:
    ui = TraceUi(tmp_path, port=7007)
    given = {"OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=desk"}
    assert ui.exporters(given)["OTEL_RESOURCE_ATTRIBUTES"] == (
        "deployment.environment.name=desk,openinference.project.name=feedloom"
    )
    assert ui.exporters({})["OTEL_RESOURCE_ATTRIBUTES"] == "openinference.project.name=feedloom"


def test_a_taken_port_is_said_so_before_anything_starts(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ui = TraceUi(tmp_path, port=taken.getsockname()[1])
        with pytest.raises(ConfigurationError, match="--traces-port"):
            ui.check_port()
    ui.check_port()


class _Healthy(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/healthz" else 404)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


def test_waiting_ends_with_an_answer_with_its_death_or_with_time(tmp_path: Path) -> None:
    with HTTPServer(("127.0.0.1", 0), _Healthy) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        ui = TraceUi(tmp_path, port=server.server_address[1])
        assert ui.wait(lambda: None) >= 0
        server.shutdown()
        thread.join()
    with pytest.raises(FatalError, match="does not answer"):
        ui.wait(lambda: None, timeout_s=0)

    def died() -> None:
        raise FatalError("traces ended with status 1")

    with pytest.raises(FatalError, match="status 1"):
        ui.wait(died)


def test_up_starts_it_first_and_every_service_sends_its_spans_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[tuple[str, Mapping[str, str]]] = []

    class Recorder(Supervisor):
        def run(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> Child:
            started.append((name, environment))
            return super().run(name, ["true"], {})

        def check(self) -> None:
            """They end at once."""

    bus = InMemoryBus()
    monkeypatch.setattr(platform, "Supervisor", Recorder)
    monkeypatch.setattr(platform, "KafkaBus", lambda kafka: bus)
    monkeypatch.setattr(platform, "apply_catalogue", lambda kafka: [])
    monkeypatch.setattr(platform.LocalPlatform, "_bootstrap", lambda *_: None)
    ui = TraceUi(tmp_path, port=7007)
    monkeypatch.setattr(ui, "check_port", lambda: None)
    monkeypatch.setattr(ui, "install", lambda say: None)
    monkeypatch.setattr(ui, "wait", lambda check: 0.0)
    report = WorkerStatusReported(
        worker_id="w", state="ready", versions={"default": "1"}, reported_at_ms=1
    )
    bus.publisher().publish("platform.workers", key=b"w", value=codec.encode(report))
    settings = Settings(home=tmp_path, kafka=KafkaSettings(bootstrap_servers="nowhere:1"))
    with platform.LocalPlatform(settings, nobody, gateway=True, trace_ui=ui, engine="memory"):
        pass
    (first, own), *services = started
    assert first == "traces"
    # It must not send its own spans to itself.
    assert not any(name.startswith("OTEL_") for name in own)
    assert [name for name, _ in services] == ["worker", "trainer", "rollouts", "gateway"]
    for _, environment in services:
        assert environment["OTEL_TRACES_EXPORTER"] == "otlp"
        endpoint = environment["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"]
        assert endpoint == "http://127.0.0.1:7007/v1/traces"
