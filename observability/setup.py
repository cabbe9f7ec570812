"""Start OpenTelemetry in a process: traces, metrics and logs, from the ``OTEL_*`` variables.

Nothing leaves the process unless a variable asks for it: ``OTEL_TRACES_EXPORTER``,
``OTEL_METRICS_EXPORTER`` and ``OTEL_LOGS_EXPORTER`` (``none``, ``console`` or ``otlp``, metrics
also ``prometheus``; several with commas), or an ``OTEL_EXPORTER_OTLP_*ENDPOINT``, which means
``otlp``. Sampling, resource attributes, batch sizes and headers are read by the SDK itself. OTLP
goes over HTTP unless ``OTEL_EXPORTER_OTLP_PROTOCOL`` says ``grpc``, which needs a package of its
own.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from opentelemetry import trace
from opentelemetry._logs import get_logger_provider, set_logger_provider
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import LogRecordExporter
from opentelemetry.sdk.metrics.export import MetricReader
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter

from infra.contracts.errors import ConfigurationError
from infra.settings import TelemetrySettings
from observability.engine_spans import EngineSpans
from observability.metrics import PrometheusEndpoint, is_collecting, prometheus_place, start_metrics
from observability.spans import SpanFileExporter
from observability.tracing import start_recording

log = logging.getLogger(__name__)

SHUTDOWN_TIMEOUT_S = 5.0
SPAN_FILE_DELAY_MS = 200
OTLP_MODULES = {
    "http/protobuf": "opentelemetry.exporter.otlp.proto.http",
    "grpc": "opentelemetry.exporter.otlp.proto.grpc",
}

Signal = Literal["traces", "metrics", "logs"]
Exporter = Literal["console", "otlp", "prometheus"]


class Telemetry:
    """What was started. A context manager; leaving it flushes and stops."""

    def __init__(self, stops: list[Callable[[], object]]) -> None:
        self._stops = stops

    def shutdown(self, timeout_s: float = SHUTDOWN_TIMEOUT_S) -> None:
        """Flush and stop all signals at once, and wait ``timeout_s`` for it. Safe to call twice.

        The SDK's own bounds add up to a minute and more when a collector does not answer. What is
        not out by then is lost; span files are written before anything is sent.
        """
        stops, self._stops = self._stops, []
        threads = [threading.Thread(target=_stop, args=(stop,), daemon=True) for stop in stops]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + timeout_s
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        if any(thread.is_alive() for thread in threads):
            log.warning("telemetry was not all delivered within %.0f s", timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.shutdown()


def _stop(stop: Callable[[], object]) -> None:
    try:
        stop()
    except Exception:
        # MeterProvider.shutdown raises a bare Exception; telemetry must not fail its process.
        log.warning("telemetry did not stop cleanly", exc_info=True)


def configure_telemetry(
    service_name: str, settings: TelemetrySettings, *, instance_id: str | None = None
) -> Telemetry:
    """Install the providers of this process, and a log on standard error.

    ``OTEL_SERVICE_NAME`` overrides ``service_name``. A process has one set of providers: a second
    call leaves the first set in place and only returns something to shut down. ``instance_id``
    tells this process from others of its service; by default host and process id do.

    Raises:
        ConfigurationError: a variable names an exporter or a protocol that is not to be had, or
            metrics cannot be served where they are to be.
    """
    service = os.environ.get("OTEL_SERVICE_NAME") or service_name
    _configure_logging(settings, service)
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return Telemetry([])
    exporters = {name: chosen_exporters(name) for name in ("traces", "metrics", "logs")}
    resource = _resource(service, instance_id)
    stops: list[Callable[[], object]] = []
    # Without anywhere to send spans to none are recorded: a fifth of a small request's CPU time.
    # The API's own tracer then hands the caller's trace context on, unchanged.
    wanted = bool(exporters["traces"]) or settings.span_directory is not None
    if wanted and not isinstance(trace.get_tracer_provider(), TracerProvider):
        stops.append(_start_traces(resource, exporters["traces"], settings.span_directory))
    wanted = bool(exporters["metrics"]) or settings.prometheus_port is not None
    if wanted and not is_collecting():
        stops.append(_start_metrics(resource, exporters["metrics"], settings))
    if exporters["logs"] and not isinstance(get_logger_provider(), LoggerProvider):
        stops.append(_start_logs(resource, exporters["logs"]))
    return Telemetry(stops)


def chosen_exporters(signal: Signal) -> tuple[Exporter, ...]:
    """What the environment asks for, perhaps nothing. Raises ConfigurationError on unknown names.

    Metrics are served to Prometheus where it is named here, or ``prometheus_port`` is set.
    """
    variable = f"OTEL_{signal.upper()}_EXPORTER"
    named = os.environ.get(variable, "").strip().lower()
    if named:
        known = ("none", "console", "otlp", *(("prometheus",) if signal == "metrics" else ()))
        chosen = dict.fromkeys(name.strip() for name in named.split(","))
        for name in chosen:
            if name not in known:
                raise ConfigurationError(
                    f"{variable}={named}: use {', '.join(known[:-1])} or {known[-1]}"
                )
        return tuple(name for name in chosen if name != "none")  # type: ignore[misc]
    endpoints = (
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        f"OTEL_EXPORTER_OTLP_{signal.upper()}_ENDPOINT",
    )
    return ("otlp",) if any(os.environ.get(name) for name in endpoints) else ()


def otlp_exporter(signal: Signal, module: str, name: str) -> Any:
    """The OTLP exporter class of a signal, by the protocol that the environment asks for."""
    specific = f"OTEL_EXPORTER_OTLP_{signal.upper()}_PROTOCOL"
    variable = specific if os.environ.get(specific) else "OTEL_EXPORTER_OTLP_PROTOCOL"
    protocol = os.environ.get(variable) or "http/protobuf"
    package = OTLP_MODULES.get(protocol)
    if package is None:
        raise ConfigurationError(f"{variable}={protocol}: use {' or '.join(OTLP_MODULES)}")
    try:
        return getattr(import_module(f"{package}.{module}"), name)
    except ImportError as error:
        raise ConfigurationError(
            f"{variable}={protocol} needs the package opentelemetry-exporter-otlp-proto-grpc"
        ) from error


def _resource(service: str, instance_id: str | None) -> Resource:
    attributes = {"service.name": service}
    if instance_id is not None:
        attributes["service.instance.id"] = instance_id
    elif "service.instance.id" not in OTELResourceDetector().detect().attributes:
        # Two processes that send one series would overwrite each other's.
        attributes["service.instance.id"] = f"{socket.gethostname()}-{os.getpid()}"
    return Resource.create(attributes)


def _start_traces(
    resource: Resource, exporters: Sequence[Exporter], span_directory: Path | None
) -> Callable[[], object]:
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    # Processors are flushed in this order: the disk must not wait for a collector.
    if span_directory is not None:
        to_file = BatchSpanProcessor(
            SpanFileExporter(span_directory), schedule_delay_millis=SPAN_FILE_DELAY_MS
        )
        provider.add_span_processor(EngineSpans(to_file))
    for exporter in exporters:
        provider.add_span_processor(EngineSpans(BatchSpanProcessor(_span_exporter(exporter))))
    trace.set_tracer_provider(provider)
    start_recording()
    return provider.shutdown


def _span_exporter(exporter: Exporter) -> SpanExporter:
    if exporter == "console":
        from opentelemetry.sdk.trace.export import ConsoleSpanExporter

        return ConsoleSpanExporter()
    made: SpanExporter = otlp_exporter("traces", "trace_exporter", "OTLPSpanExporter")()
    return made


def _start_metrics(
    resource: Resource, exporters: Sequence[Exporter], settings: TelemetrySettings
) -> Callable[[], object]:
    from opentelemetry.sdk.metrics.export import (
        ConsoleMetricExporter,
        PeriodicExportingMetricReader,
    )

    readers: list[MetricReader] = []
    endpoint: PrometheusEndpoint | None = None
    if "prometheus" in exporters or settings.prometheus_port is not None:
        endpoint = PrometheusEndpoint(*prometheus_place(settings))
        readers.append(endpoint.reader)
    if "console" in exporters:
        readers.append(PeriodicExportingMetricReader(ConsoleMetricExporter()))
    if "otlp" in exporters:
        made = otlp_exporter("metrics", "metric_exporter", "OTLPMetricExporter")()
        readers.append(PeriodicExportingMetricReader(made))
    stop_metrics = start_metrics(resource, readers, stop_timeout_s=SHUTDOWN_TIMEOUT_S)

    def stop() -> None:
        if endpoint is not None:
            endpoint.close()
        stop_metrics()

    return stop


def _start_logs(resource: Resource, exporters: Sequence[Exporter]) -> Callable[[], object]:
    from opentelemetry.sdk._logs.export import BatchLogRecordProcessor

    from observability.logs import ClientRepeats, OtelLogHandler

    provider = LoggerProvider(resource=resource, shutdown_on_exit=False)
    for exporter in exporters:
        provider.add_log_record_processor(BatchLogRecordProcessor(_log_exporter(exporter)))
    set_logger_provider(provider)
    handler = OtelLogHandler(provider)
    handler.addFilter(ClientRepeats())
    logging.getLogger().addHandler(handler)

    def stop() -> None:
        logging.getLogger().removeHandler(handler)
        provider.shutdown()

    return stop


def _log_exporter(exporter: Exporter) -> LogRecordExporter:
    if exporter == "console":
        from opentelemetry.sdk._logs.export import ConsoleLogRecordExporter

        return ConsoleLogRecordExporter()
    made: LogRecordExporter = otlp_exporter("logs", "_log_exporter", "OTLPLogExporter")()
    return made


def _configure_logging(settings: TelemetrySettings, service: str) -> None:
    from observability.logs import ClientRepeats, JsonFormatter, TraceFormatter

    root = logging.getLogger()
    ours = (TraceFormatter, JsonFormatter)
    if not any(isinstance(handler.formatter, ours) for handler in root.handlers):
        as_json = settings.log_format == "json"
        handler = logging.StreamHandler()
        handler.setFormatter(JsonFormatter(service) if as_json else TraceFormatter())
        handler.addFilter(ClientRepeats())
        root.addHandler(handler)
    if root.level > logging.INFO or root.level == logging.NOTSET:
        root.setLevel(logging.INFO)
    # Chatty at INFO on every connection and rebalance.
    for name in ("kafka", "aiokafka"):
        logging.getLogger(name).setLevel(logging.WARNING)
