"""Telemetry when things go wrong: a dead collector, a full file, a broken line, two set-ups."""

from __future__ import annotations

import gzip
import json
import os
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from infra.contracts.errors import ConfigurationError
from observability.setup import otlp_exporter
from observability.spans import SpanFileExporter, SpanRecord, read_spans, trace_hops

PROGRAM = """
import logging, sys
from pathlib import Path
from infra.settings import TelemetrySettings
from observability import instruments
from observability.setup import configure_telemetry
from opentelemetry import trace

settings = TelemetrySettings(span_directory=Path(sys.argv[1]))
first = configure_telemetry("shop", settings, instance_id="shop-1")
second = configure_telemetry("shop", settings)
instruments.DEAD_LETTERS.add(1)
with trace.get_tracer("t").start_as_current_span("send"):
    logging.getLogger("shop").info("hello")
for telemetry in (second, first, first):
    telemetry.shutdown(1.0)
logging.getLogger("shop").info("after")
print("end")
"""


def run(folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    plain = {key: value for key, value in os.environ.items() if not key.startswith("OTEL_")}
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder)],
        capture_output=True,
        text=True,
        check=True,
        env=plain | variables,
        timeout=120,
    )


def test_spans_reach_the_disk_though_the_collector_never_answers(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        finished = run(tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=endpoint)
    assert finished.stdout.strip() == "end"
    assert "not all delivered within 1 s" in finished.stderr
    assert [span.name for span in read_spans(tmp_path)] == ["send"]


def test_each_signal_goes_out_once(tmp_path: Path) -> None:
    finished = run(
        tmp_path,
        OTEL_TRACES_EXPORTER="console",
        OTEL_METRICS_EXPORTER="console",
        OTEL_LOGS_EXPORTER="console",
        OTEL_SERVICE_NAME="till",
        OTEL_RESOURCE_ATTRIBUTES="deployment.environment.name=test",
    )
    assert finished.stdout.count('"body": "hello"') == 1
    assert finished.stdout.count('"name": "send"') == 1
    assert finished.stdout.count('"name": "feedloom.dead_letters"') == 1
    assert '"service.name": "till"' in finished.stdout
    assert '"service.instance.id": "shop-1"' in finished.stdout
    assert '"deployment.environment.name": "test"' in finished.stdout
    assert "WARNING" not in finished.stderr
    assert [span.service for span in read_spans(tmp_path)] == ["till"]


class _Collector(ThreadingHTTPServer):
    """Takes OTLP over HTTP and keeps the bodies by path."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Intake)
        self.bodies: dict[str, bytes] = {}


class _Intake(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        assert isinstance(self.server, _Collector)
        self.server.bodies[self.path] = self.server.bodies.get(self.path, b"") + body
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


def test_a_collector_gets_all_three_signals(tmp_path: Path) -> None:
    with _Collector() as collector:
        thread = threading.Thread(target=collector.serve_forever)
        thread.start()
        endpoint = f"http://127.0.0.1:{collector.server_address[1]}"
        run(tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=endpoint, OTEL_EXPORTER_OTLP_COMPRESSION="gzip")
        collector.shutdown()
        thread.join()
    assert set(collector.bodies) == {"/v1/traces", "/v1/metrics", "/v1/logs"}
    (span,) = read_spans(tmp_path)
    trace_id = bytes.fromhex(span.trace_id)
    assert trace_id in collector.bodies["/v1/traces"]
    # The log line carries the trace that it was written in.
    assert trace_id in collector.bodies["/v1/logs"]
    assert b"feedloom.dead_letters" in collector.bodies["/v1/metrics"]


@pytest.mark.parametrize(
    ("variables", "written"),
    [
        ({"OTEL_SDK_DISABLED": "true"}, 0),
        ({"OTEL_TRACES_SAMPLER": "always_off"}, 0),
        ({"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "1"}, 1),
    ],
)
def test_the_sdk_s_own_variables_count(
    tmp_path: Path, variables: dict[str, str], written: int
) -> None:
    finished = run(tmp_path, **variables)
    assert finished.stdout.strip() == "end"
    assert "shop: hello" in finished.stderr
    assert len(read_spans(tmp_path)) == written


def test_the_protocol_is_heeded_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def chosen() -> str:
        made = otlp_exporter("traces", "trace_exporter", "OTLPSpanExporter")
        return str(made.__module__)

    for variable in ("OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"):
        monkeypatch.delenv(variable, raising=False)
    assert ".http." in chosen()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json")
    with pytest.raises(ConfigurationError, match="http/json: use http/protobuf or grpc"):
        chosen()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "grpc")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.grpc", None)
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.grpc.trace_exporter", None)
    with pytest.raises(ConfigurationError, match="TRACES_PROTOCOL=grpc needs the package"):
        chosen()


def test_a_span_file_is_bounded(tmp_path: Path) -> None:
    provider = TracerProvider(
        resource=Resource.create({"service.name": "a/b"}), shutdown_on_exit=False
    )
    exporter = SpanFileExporter(tmp_path, max_bytes=2_000)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("t")
    for number in range(100):
        tracer.start_span(f"span-{number}", attributes={"list": (1, 2), "n": number}).end()
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert set(sizes) == {f"a_b-{os.getpid()}.jsonl", f"a_b-{os.getpid()}.old.jsonl"}
    assert max(sizes.values()) < 3_000
    assert read_spans(tmp_path)[-1].service == "a/b"
    assert "span-99" in {span.name for span in read_spans(tmp_path)}


def test_an_unwritable_folder_costs_spans_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "spans"
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(SpanFileExporter(folder)))
    folder.rmdir()
    provider.get_tracer("t").start_span("lost").end()
    assert read_spans(folder) == []


def record(span_id: str, start: int, **changes: object) -> SpanRecord:
    fields: dict[str, object] = {
        "service": "s",
        "name": span_id,
        "kind": "internal",
        "trace_id": "t",
        "span_id": span_id,
        "parent_id": None,
        "start_ns": start,
        "end_ns": start + 1,
        "status": "unset",
        "attributes": {},
    }
    return SpanRecord(**(fields | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("line", [b"[]", b"1", b'{"service": "s"}', b'{"trace', b"\xff\xfe", b""])
def test_a_broken_line_is_passed_over(tmp_path: Path, line: bytes) -> None:
    good = json.dumps(record("a", 1).__dict__ | {"added_later": 1}).encode()
    (tmp_path / "s-1.jsonl").write_bytes(line + b"\n" + good + b"\n" + line)
    assert [span.span_id for span in read_spans(tmp_path)] == ["a"]


def test_a_parent_comes_first_though_its_clock_is_late() -> None:
    spans = [
        record("grandchild", 2, parent_id="child"),
        record("child", 1, parent_id="root"),
        record("root", 100),
        record("elsewhere", 50, trace_id="u"),
        record("feedback", 300, trace_id="v", links=("t",)),
    ]
    assert trace_hops(spans, "t") == ["s: root", "s: child", "s: grandchild", "s: feedback"]


def test_spans_that_name_each_other_as_parent_do_not_hang() -> None:
    spans = [record("a", 1, parent_id="b"), record("b", 2, parent_id="a")]
    assert sorted(trace_hops(spans, "t")) == ["s: a", "s: b"]
