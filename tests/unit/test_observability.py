"""Telemetry: off the network unless asked, and a trace that survives Kafka."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from infra.contracts.errors import ConfigurationError
from observability.propagation import extract, inject
from observability.setup import chosen_exporters
from observability.spans import read_spans, trace_hops

PROGRAM = """
import logging, sys
from pathlib import Path
from infra.settings import TelemetrySettings
from observability.propagation import extract, inject
from observability.setup import configure_telemetry
from opentelemetry import trace

settings = TelemetrySettings(span_directory=Path(sys.argv[1]))
with configure_telemetry("shop", settings), configure_telemetry("shop", settings):
    tracer = trace.get_tracer("t")
    with tracer.start_as_current_span("send") as span:
        headers = inject([("traceparent", b"stale")])
        logging.getLogger("shop").info("sent")
    with tracer.start_as_current_span("process", context=extract(headers)):
        pass
    link = trace.Link(span.get_span_context())
    for _ in range(2):
        with tracer.start_as_current_span("train", links=[link]):
            pass
    with tracer.start_as_current_span("unrelated"):
        pass
print(f"{span.get_span_context().trace_id:032x}")
"""


def test_a_trace_is_written_linked_and_read_back(tmp_path: Path) -> None:
    finished = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)], capture_output=True, text=True, check=True
    )
    trace_id = finished.stdout.strip()
    spans = read_spans(tmp_path)
    assert trace_hops(spans, trace_id) == ["shop: send", "shop: process", "shop: train (x2)"]
    by_name = {span.name: span for span in spans}
    assert by_name["process"].parent_id == by_name["send"].span_id
    assert f"[trace {trace_id}]" in finished.stderr
    assert finished.stderr.count("shop: sent") == 1


def test_a_line_cut_short_is_left_out(tmp_path: Path) -> None:
    row = {
        "service": "s", "name": "n", "kind": "internal", "trace_id": "1", "span_id": "2",
        "parent_id": None, "start_ns": 1, "end_ns": 2, "status": "unset", "attributes": {},
        "links": [],
    }  # fmt: skip
    line = json.dumps(row)
    (tmp_path / "s-1.jsonl").write_text(f"{line}\n{line[:20]}")
    assert len(read_spans(tmp_path)) == 1


def test_one_trace_context_is_on_the_wire() -> None:
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("t")
    with tracer.start_as_current_span("send") as span:
        headers = inject([("a", b"1"), ("Traceparent", b"old")])
    assert [name for name, _ in headers] == ["a", "traceparent"]
    received = trace.get_current_span(extract(headers)).get_span_context()
    assert received.trace_id == span.get_span_context().trace_id


def test_a_record_without_context_starts_a_trace_of_its_own() -> None:
    assert not trace.get_current_span(extract([("a", b"1")])).get_span_context().is_valid


def test_exporters_follow_the_standard_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    assert chosen_exporters("traces") == ()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "http://collector:4318/v1/metrics")
    assert chosen_exporters("traces") == ()
    assert chosen_exporters("metrics") == ("otlp",)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318")
    assert chosen_exporters("traces") == ("otlp",)
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    assert chosen_exporters("traces") == ()
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "prometheus, otlp,prometheus")
    assert chosen_exporters("metrics") == ("prometheus", "otlp")
    monkeypatch.setenv("OTEL_LOGS_EXPORTER", "carrier-pigeon")
    with pytest.raises(ConfigurationError, match="carrier-pigeon"):
        chosen_exporters("logs")
    monkeypatch.setenv("OTEL_LOGS_EXPORTER", "prometheus")
    with pytest.raises(ConfigurationError, match="use none, console or otlp"):
        chosen_exporters("logs")
