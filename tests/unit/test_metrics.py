"""The catalogue, what the provider keeps of it, and where Prometheus finds it."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import TracerProvider
from prometheus_client.parser import text_string_to_metric_families

from infra.contracts.errors import ConfigurationError
from infra.settings import TelemetrySettings
from observability import instruments
from observability.instruments import CATALOGUE, OTHER, SERIES_LIMIT, Bounded
from observability.metrics import PrometheusEndpoint, metric_views, prometheus_place
from observability.metrics_page import page
from observability.prometheus_names import prometheus_name
from tests.metering import metered, problems
from tests.otlp import OtlpReceiver

ROOT = Path(__file__).parents[2]
PACKAGES = ("infra", "observability", "producers", "stream_workers", "trainer")
INSTRUMENTS = {
    name: instrument
    for name, instrument in vars(instruments).items()
    if (name.isupper() and any(hasattr(instrument, verb) for verb in ("add", "record", "watch")))
    or (name.isupper() and hasattr(instrument, "set"))
}


def test_the_page_is_what_the_catalogue_prints() -> None:
    assert (ROOT / "docs" / "metrics.md").read_text() == page(), (
        "python -m observability.instruments > docs/metrics.md"
    )


def test_every_metric_is_recorded_somewhere() -> None:
    assert len(INSTRUMENTS) == len(CATALOGUE)
    sources = [
        re.sub(
            r"^from observability\.instruments import (\(.*?\)|.*?$)", "", text, flags=re.S | re.M
        )
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if path != Path(instruments.__file__)
        for text in [path.read_text()]
    ]
    unused = [
        name for name in INSTRUMENTS if not any(re.search(rf"\b{name}\b", s) for s in sources)
    ]
    assert unused == []


def test_conventions_names_and_units_are_well_formed() -> None:
    for metric in CATALOGUE.values():
        assert re.fullmatch(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)+", metric.name)
        assert (metric.kind == "histogram") == bool(metric.buckets)
        assert list(metric.buckets) == sorted(metric.buckets)
        assert metric.description.endswith(".")


def test_what_callers_name_makes_no_more_series_than_the_limit() -> None:
    with metered(views=True) as found, ExitStack() as stack:
        for number in range(10_000):
            instruments.GATEWAY_ADMISSIONS.add(
                1, {instruments.OUTCOME: "admitted", instruments.TENANT: f"t{number}"}
            )
            instruments.REQUEST_DURATION.record(
                1.0, {instruments.RESPONSE_MODEL: f"m@{number}", instruments.ERROR_TYPE: "E"}
            )
            instruments.DEAD_LETTERS.add(1, {instruments.ERROR_TYPE: f"Error{number}"})
        stop = instruments.TOKENS_IN_FLIGHT.watch(
            lambda: [(1, {"request": str(number)}) for number in range(10_000)]
        )
        stack.callback(stop)
        for name in (
            "feedloom.gateway.admissions",
            "gen_ai.server.request.duration",
            "feedloom.dead_letters",
        ):
            values = found.values(name)
            # One more holds what all others came to.
            assert len(values) == SERIES_LIMIT + 1
            assert sum(values.values()) == 10_000
        assert found.values("feedloom.worker.tokens.in_flight") == {(): 1}


def test_attributes_that_are_not_listed_are_dropped_and_buckets_kept() -> None:
    with metered(views=True) as found:
        instruments.COMMIT_DURATION.record(0.1, {"request": "r1"})
        instruments.COMMIT_DURATION.record(0.2, {"request": "r2", instruments.ERROR_TYPE: "E"})
        assert found.values("feedloom.worker.commit.duration") == {(): 1, ("E",): 1}
        assert problems(found.metrics()) == []


def test_the_first_values_keep_their_names() -> None:
    bounded = Bounded(2)
    assert [bounded(value) for value in ("a", "b", "c", "a", "d", "b")] == [
        *("a", "b", OTHER, "a", OTHER, "b"),
    ]


def test_a_gauge_is_read_only_while_it_is_watched() -> None:
    with metered(views=True) as found:
        partitions = ["0", "1"]
        stop = instruments.CONSUMER_LAG.watch(
            lambda: [(7, {instruments.PARTITION: partition}) for partition in partitions]
        )
        assert found.values("feedloom.worker.lag") == {("0",): 7, ("1",): 7}
        # Taken away: no stale series.
        partitions.remove("1")
        assert found.values("feedloom.worker.lag") == {("0",): 7}
        stop()
        stop()
        assert found.values("feedloom.worker.lag") == {}


def test_what_is_recorded_in_a_sampled_span_names_its_trace() -> None:
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("t")
    with metered(views=True) as found:
        with tracer.start_as_current_span("request") as span:
            instruments.REQUEST_DURATION.record(0.5)
        instruments.REQUEST_DURATION.record(5.0)
        (point,) = found.points("gen_ai.server.request.duration").values()
    (exemplar,) = point.exemplars
    assert exemplar.trace_id == span.get_span_context().trace_id
    assert exemplar.value == 0.5


# Prometheus.


@pytest.fixture
def endpoint() -> Iterator[PrometheusEndpoint]:
    served = PrometheusEndpoint("127.0.0.1", 0)
    provider = MeterProvider([served.reader], shutdown_on_exit=False, views=metric_views())
    for metric in CATALOGUE.values():
        attributes = dict.fromkeys(metric.attributes, "x")
        meter = provider.get_meter("feedloom")
        if metric.kind == "counter":
            meter.create_counter(metric.name, metric.unit).add(1, attributes)
        elif metric.kind == "up_down_counter":
            meter.create_up_down_counter(metric.name, metric.unit).add(1, attributes)
        elif metric.kind == "gauge":
            meter.create_gauge(metric.name, metric.unit).set(1, attributes)
        else:
            meter.create_histogram(metric.name, metric.unit).record(1, attributes)
    yield served
    served.close()
    provider.shutdown()


def fetched(url: str) -> str:
    with urllib.request.urlopen(url) as answer:
        text: str = answer.read().decode()
    return text


def test_prometheus_fetches_every_metric_under_the_name_of_the_page(
    endpoint: PrometheusEndpoint,
) -> None:
    families = {
        sample.name: sample.labels
        for family in text_string_to_metric_families(fetched(endpoint.url))
        for sample in family.samples
    }
    for metric in CATALOGUE.values():
        name = prometheus_name(metric)
        labels = families[f"{name}_count" if metric.kind == "histogram" else name]
        assert set(labels) == {re.sub(r"\W", "_", key) for key in metric.attributes}, name


def test_a_port_that_is_taken_is_said_so(endpoint: PrometheusEndpoint) -> None:
    port = int(endpoint.url.rpartition(":")[2].partition("/")[0])
    with pytest.raises(ConfigurationError, match=f"127.0.0.1:{port}.*PROMETHEUS_PORT=0"):
        PrometheusEndpoint("127.0.0.1", port)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.prometheus", None)
    with pytest.raises(ConfigurationError, match=r"feedloom\[metrics\]"):
        PrometheusEndpoint("127.0.0.1", 0)


def test_settings_come_before_the_standard_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOST", "PORT"):
        monkeypatch.delenv(f"OTEL_EXPORTER_PROMETHEUS_{name}", raising=False)
    assert prometheus_place(TelemetrySettings()) == ("127.0.0.1", 9464)
    monkeypatch.setenv("OTEL_EXPORTER_PROMETHEUS_HOST", "0.0.0.0")
    monkeypatch.setenv("OTEL_EXPORTER_PROMETHEUS_PORT", "9000")
    assert prometheus_place(TelemetrySettings()) == ("0.0.0.0", 9000)
    given = TelemetrySettings(prometheus_port=0, prometheus_host="::1")
    assert prometheus_place(given) == ("::1", 0)
    monkeypatch.setenv("OTEL_EXPORTER_PROMETHEUS_PORT", "http")
    with pytest.raises(ConfigurationError, match="PROMETHEUS_PORT=http"):
        prometheus_place(TelemetrySettings())


PROGRAM = """
import logging, re, sys, urllib.request
from infra.settings import load_settings
from observability import instruments
from observability.metrics import is_collecting
from observability.setup import configure_telemetry
from opentelemetry import trace

class Kept(logging.Handler):
    def emit(self, record):
        lines.append(record.getMessage())

lines = []
logging.getLogger().addHandler(Kept())
assert not is_collecting()
with configure_telemetry("shop", load_settings().telemetry):
    assert is_collecting()
    with trace.get_tracer("t").start_as_current_span("work"):
        instruments.REQUEST_DURATION.record(0.5, {"error.type": "E", "request": "r1"})
    (url,) = [found for line in lines for found in re.findall(r"http://\\S+/metrics", line)]
    print(urllib.request.urlopen(url).read().decode())
try:
    urllib.request.urlopen(url)
except OSError:
    print("closed")
"""


def test_both_ways_out_at_once_and_the_process_itself() -> None:
    plain = {key: value for key, value in os.environ.items() if not key.startswith("OTEL_")}
    with OtlpReceiver() as receiver:
        finished = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            capture_output=True,
            text=True,
            env=plain | receiver.environment | {"FEEDLOOM_TELEMETRY__PROMETHEUS_PORT": "0"},
            timeout=120,
        )
        assert finished.returncode == 0, finished.stderr
        sent = {metric.name for metric in receiver.metrics}
        exemplars = [
            exemplar.trace_id
            for metric in receiver.metrics
            if metric.name == "gen_ai.server.request.duration"
            for point in metric.points
            for exemplar in point.exemplars
        ]
        (span,) = receiver.spans
    shown = finished.stdout
    assert 'gen_ai_server_request_duration_seconds_count{error_type="E"} 1.0' in shown
    assert 'service_name="shop"' in shown
    assert shown.endswith("closed\n")
    assert exemplars == [span.trace_id]
    for name in (
        *("process.cpu.time", "process.memory.usage", "process.thread.count"),
        "process.open_file_descriptor.count",
    ):
        assert name in sent
    assert "process_memory_usage_bytes" in shown
    assert not [name for name in sent if name.startswith(("system.", "cpython."))]


def test_the_standard_variable_serves_prometheus_too() -> None:
    plain = {key: value for key, value in os.environ.items() if not key.startswith("OTEL_")}
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    finished = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        env=plain
        | {"OTEL_METRICS_EXPORTER": "prometheus", "OTEL_EXPORTER_PROMETHEUS_PORT": str(port)},
        timeout=120,
    )
    assert finished.returncode == 0, finished.stderr
    assert f"metrics at http://127.0.0.1:{port}/metrics" in finished.stderr
    assert "gen_ai_server_request_duration_seconds_count" in finished.stdout
