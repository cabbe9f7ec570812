"""The meter provider of a process: what is kept of each metric, and where it can be had.

Exemplars, the traces behind a histogram's buckets, are the SDK's: what is recorded inside a sampled
span carries it (``OTEL_METRICS_EXEMPLAR_FILTER``). They go out by OTLP. The published Prometheus
exporter leaves them out.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader
from opentelemetry.sdk.metrics.view import ExplicitBucketHistogramAggregation, View
from opentelemetry.sdk.resources import Resource

from infra.contracts.errors import ConfigurationError
from infra.settings import TelemetrySettings
from observability.instruments import CATALOGUE, SERIES_LIMIT, Metric
from observability.prometheus_names import prometheus_name

if TYPE_CHECKING:
    from prometheus_client.core import Metric as Family
    from prometheus_client.registry import Collector

log = logging.getLogger(__name__)

PROMETHEUS_HOST = "127.0.0.1"
PROMETHEUS_PORT = 9464
"""As the OpenTelemetry specification has it."""

PROCESS_METRICS: Mapping[str, list[str] | None] = {
    "process.cpu.time": ["user", "system"],
    "process.cpu.utilization": ["user", "system"],
    "process.memory.usage": None,
    "process.memory.virtual": None,
    "process.thread.count": None,
    "process.open_file_descriptor.count": None,
}


def is_collecting() -> bool:
    """Whether the telemetry set-up of this process installed a meter provider."""
    return isinstance(metrics.get_meter_provider(), MeterProvider)


def metric_views() -> list[View]:
    """One a metric of the catalogue: its attributes, its buckets, and how many series there are."""
    return [_view(metric) for metric in CATALOGUE.values()]


def _view(metric: Metric) -> View:
    return View(
        instrument_name=metric.name,
        attribute_keys=set(metric.attributes),
        aggregation=(
            ExplicitBucketHistogramAggregation(metric.buckets)
            if metric.kind == "histogram"
            else None
        ),
        aggregation_cardinality_limit=SERIES_LIMIT,
    )


def start_metrics(
    resource: Resource, readers: Sequence[MetricReader], *, stop_timeout_s: float
) -> Callable[[], object]:
    """Install the provider of this process; returns what stops it."""
    provider = MeterProvider(
        readers, resource=resource, shutdown_on_exit=False, views=metric_views()
    )
    metrics.set_meter_provider(provider)
    _watch_process(provider)
    return lambda: provider.shutdown(timeout_millis=1000 * stop_timeout_s)


def _watch_process(provider: MeterProvider) -> None:
    """CPU, memory, threads and open files, where the package that reads them is installed."""
    if find_spec("opentelemetry.instrumentation.system_metrics") is None:
        return
    from opentelemetry.instrumentation.system_metrics import SystemMetricsInstrumentor

    SystemMetricsInstrumentor(config=dict(PROCESS_METRICS)).instrument(meter_provider=provider)


def prometheus_place(settings: TelemetrySettings) -> tuple[str, int]:
    """Where the endpoint is to listen: as set, else as ``OTEL_EXPORTER_PROMETHEUS_*`` say.

    Raises ConfigurationError for a port that is none.
    """
    host = settings.prometheus_host or os.environ.get("OTEL_EXPORTER_PROMETHEUS_HOST")
    port = settings.prometheus_port
    if port is None:
        named = os.environ.get("OTEL_EXPORTER_PROMETHEUS_PORT") or str(PROMETHEUS_PORT)
        if not named.isdecimal() or int(named) > 65535:
            raise ConfigurationError(f"OTEL_EXPORTER_PROMETHEUS_PORT={named}: give a port")
        port = int(named)
    return host or PROMETHEUS_HOST, port


class PrometheusEndpoint:
    """Serves ``/metrics`` until it is closed; ``reader`` is for the meter provider.

    A scrape collects in a thread of its own. Nothing but this process's metrics is served, under
    the names that a Prometheus gives them that is sent OTLP. Port 0 picks a free one.

    Raises ConfigurationError: the package is not installed, or the port is taken.
    """

    def __init__(self, host: str, port: int) -> None:
        try:
            from opentelemetry.exporter.prometheus import PrometheusMetricReader
            from prometheus_client import CollectorRegistry, start_http_server
        except ImportError as error:
            raise ConfigurationError(
                "metrics for Prometheus need the package opentelemetry-exporter-prometheus: "
                "install feedloom[metrics]"
            ) from error
        collected, registry = CollectorRegistry(), CollectorRegistry()
        self.reader: MetricReader = PrometheusMetricReader(
            registry=collected, scope_info_enabled=False
        )
        registry.register(_Ratios(collected))
        try:
            self._server, self._thread = start_http_server(port, host, registry)
        except OSError as error:
            raise ConfigurationError(
                f"metrics cannot be served on {host}:{port}: {error.strerror}; each process needs "
                "a port of its own: FEEDLOOM_TELEMETRY__PROMETHEUS_PORT=0 picks a free one"
            ) from error
        self.url = f"http://{host}:{self._server.server_port}/metrics"
        log.info("metrics at %s", self.url)

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Ratios:
    """Gauges of unit 1 with their ``_ratio``, which the exporter leaves out.

    So has the specification it, and Prometheus's own reading of OTLP; a dashboard can then be the
    same for both (``compatibility/prometheus_and_openmetrics.md``, "Metric metadata").
    """

    def __init__(self, collected: Collector) -> None:
        self._collected = collected
        self._names = {
            re.sub("[^a-zA-Z0-9:]+", "_", metric.name): prometheus_name(metric)
            for metric in CATALOGUE.values()
            if metric.kind == "gauge" and metric.unit == "1"
        }

    def collect(self) -> Iterable[Family]:
        for family in self._collected.collect():
            name = self._names.get(family.name)
            if name is not None:
                family.name = name
                family.samples = [sample._replace(name=name) for sample in family.samples]
            yield family
