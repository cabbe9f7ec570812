"""No secret on a command line, in a log line or in a span, looked for by its own characters."""

from __future__ import annotations

import ast
import logging
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import observability.tracing
import producers.gateway.tracing
from infra.contracts import codec
from infra.contracts.events.platform import WorkerStatusReported
from infra.identity.authenticator import PlatformAuthenticator
from infra.identity.key_topic import KeysWatcher, create_key
from infra.local import platform
from infra.settings import GatewaySettings, Settings
from infra.testing import InMemoryBus
from tests.gateway import ScriptedWorker, running_gateway, seed

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("infra", "observability", "producers", "stream_workers", "trainer")
SECRET = "c0rrect-h0rse-battery"
LAUNCHERS = {
    "infra/deploy/helm/fetch_tools.py",
    "infra/kafka/broker_node.py",
    "infra/kafka/java.py",
    "infra/local/platform.py",
    "infra/local/supervisor.py",
    "infra/local/trace_ui.py",
    "infra/tether.py",
    "producers/demo/commands.py",
}
"""Every file that starts a process. A new one needs a look at what is on its command line."""


def launches(source: str) -> bool:
    """Whether a module starts a process."""
    calls = {"Popen", "run", "call", "check_call", "check_output", "system"}
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        module, _, function = name.rpartition(".")
        if module == "subprocess" and function in calls:
            return True
        if module == "os" and function.startswith(("exec", "spawn", "posix_spawn", "system")):
            return True
        if function.startswith("create_subprocess_"):
            return True
    return False


def test_where_processes_are_started_is_known() -> None:
    assert launches("import subprocess\nsubprocess.run(['true'])")
    assert not launches("service.run()")
    found = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if launches(path.read_text())
    }
    assert found - LAUNCHERS == set()
    assert "infra/local/supervisor.py" in found


def test_no_command_line_of_the_platform_holds_a_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All services started with a password in the settings: it goes by the environment."""
    command_lines: list[Sequence[str]] = []
    environments: list[dict[str, str]] = []
    real = subprocess.Popen

    def started(command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
        command_lines.append(list(command))
        environments.append(dict(options["env"]))
        return real(["true"], **options)

    def ran(command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[bytes]:
        command_lines.append(list(command))
        environments.append(dict(options["env"]))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setenv("FEEDLOOM_KAFKA__SASL_PASSWORD", SECRET)
    monkeypatch.setenv("FEEDLOOM_KAFKA__SASL_USERNAME", "operator")
    monkeypatch.setenv("FEEDLOOM_KAFKA__SASL_MECHANISM", "SCRAM-SHA-512")
    monkeypatch.setenv("FEEDLOOM_KAFKA__SECURITY_PROTOCOL", "SASL_SSL")
    monkeypatch.setenv("FEEDLOOM_KAFKA__BOOTSTRAP_SERVERS", "nowhere:1")
    settings = Settings(home=tmp_path)
    assert settings.kafka.sasl_password == SECRET
    bus = InMemoryBus()
    report = WorkerStatusReported(
        worker_id="w", state="ready", versions={"default": "1"}, reported_at_ms=1
    )
    bus.publisher().publish("platform.workers", key=b"w", value=codec.encode(report))
    monkeypatch.setattr(subprocess, "Popen", started)
    monkeypatch.setattr(subprocess, "run", ran)
    monkeypatch.setattr(platform, "KafkaBus", lambda kafka: bus)
    monkeypatch.setattr(platform, "apply_catalogue", lambda kafka: [])
    monkeypatch.setattr(platform.LocalPlatform, "check", lambda self: None)
    said: list[str] = []
    with platform.LocalPlatform(settings, said.append, gateway=True):
        pass
    named = " ".join(word for command in command_lines for word in command)
    for service in ("worker", "trainer", "rollouts", "gateway", "bootstrap"):
        assert service in named
    assert SECRET not in named
    assert SECRET not in " ".join(said)
    # It is not lost: children find it where they look for it.
    assert {environment["FEEDLOOM_KAFKA__SASL_PASSWORD"] for environment in environments} == {
        SECRET
    }


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    monkeypatch.setattr(observability.tracing, "_recording", True)
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(producers.gateway.tracing, "_TRACER", provider.get_tracer("gateway"))
    yield exporter
    provider.shutdown()


def test_no_log_line_and_no_span_of_a_call_holds_its_key(
    caplog: pytest.LogCaptureFixture, spans: InMemorySpanExporter
) -> None:
    """Of calls that succeed, that are refused, and that put the key where it does not belong."""
    bus = InMemoryBus()
    seed(bus)
    made = create_key(
        bus.publisher(), KeysWatcher(bus), tenant="acme", name="app", roles=("caller",), now_ms=0
    )
    key = made.key.text
    authenticator = PlatformAuthenticator(bus, GatewaySettings())
    authenticator.poll(1)
    worker = ScriptedWorker(bus)
    with caplog.at_level(logging.DEBUG), running_gateway(bus, authenticator) as gateway:
        ask = {"model": "default", "prompt": "a b c"}
        url = f"{gateway.url}/v1/completions"
        answers = [
            httpx.post(url, json=ask, headers={"Authorization": f"Bearer {key}"}),
            httpx.post(url, json=ask, headers={"Authorization": f"Bearer {key}x"}),
            httpx.post(f"{url}?api_key={key}", json=ask),
            httpx.post(url, json=ask, headers={"Authorization": f"Basic {key}"}),
        ]
    worker.close()
    authenticator.close()
    assert [answer.status_code for answer in answers] == [200, 401, 401, 401]
    written = "\n".join(span.to_json() for span in spans.get_finished_spans())
    assert len(spans.get_finished_spans()) >= len(answers)
    ours = "\n".join(
        record.getMessage() for record in caplog.records if not record.name.startswith("http")
    )
    for shown in (written, ours, *(answer.text for answer in answers)):
        assert made.key.secret not in shown
