"""Start OpenTelemetry in a process: traces, metrics and logs, from the ``OTEL_*`` variables.

Nothing leaves the process unless a variable asks for it: ``OTEL_TRACES_EXPORTER``,
``OTEL_METRICS_EXPORTER`` and ``OTEL_LOGS_EXPORTER`` (``none``, ``console`` or ``otlp``), or an
``OTEL_EXPORTER_OTLP_*ENDPOINT``, which means ``otlp``. Sampling, resource attributes, batch sizes
and headers are read by the SDK itself. OTLP goes over HTTP unless ``OTEL_EXPORTER_OTLP_PROTOCOL``
says ``grpc``, which needs a package of its own.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from opentelemetry import metrics, trace
from opentelemetry._logs import get_logger_provider, set_logger_provider
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter

from infra.contracts.errors import ConfigurationError
from infra.settings import TelemetrySettings
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
Exporter = Literal["none", "console", "otlp"]


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
    """Install the providers of this process, and a plain log on standard error.

    ``OTEL_SERVICE_NAME`` overrides ``service_name``. A process has one set of providers: a second
    call leaves the first set in place and only returns something to shut down.

    Raises:
        ConfigurationError: a variable names an exporter or a protocol that is not to be had.
    """
    _configure_logging()
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return Telemetry([])
    exporters = {name: chosen_exporter(name) for name in ("traces", "metrics", "logs")}
    resource = _resource(service_name, instance_id)
    stops: list[Callable[[], object]] = []
    # Without anywhere to send spans to none are recorded: a fifth of a small request's CPU time.
    # The API's own tracer then hands the caller's trace context on, unchanged.
    wanted = exporters["traces"] != "none" or settings.span_directory is not None
    if wanted and not isinstance(trace.get_tracer_provider(), TracerProvider):
        stops.append(_start_traces(resource, exporters["traces"], settings.span_directory))
    wanted = exporters["metrics"] != "none"
    if wanted and not isinstance(metrics.get_meter_provider(), MeterProvider):
        stops.append(_start_metrics(resource, exporters["metrics"]))
    if exporters["logs"] != "none" and not isinstance(get_logger_provider(), LoggerProvider):
        stops.append(_start_logs(resource, exporters["logs"]))
    return Telemetry(stops)


def chosen_exporter(signal: Signal) -> Exporter:
    """What the environment asks for. Raises ConfigurationError on an unknown name."""
    variable = f"OTEL_{signal.upper()}_EXPORTER"
    named = os.environ.get(variable, "").strip().lower()
    if named:
        if named not in ("none", "console", "otlp"):
            raise ConfigurationError(f"{variable}={named}: use none, console or otlp")
        return named  # type: ignore[return-value]
    endpoints = (
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        f"OTEL_EXPORTER_OTLP_{signal.upper()}_ENDPOINT",
    )
    return "otlp" if any(os.environ.get(name) for name in endpoints) else "none"


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


def _resource(service_name: str, instance_id: str | None) -> Resource:
    attributes = {"service.name": os.environ.get("OTEL_SERVICE_NAME") or service_name}
    if instance_id is not None:
        attributes["service.instance.id"] = instance_id
    return Resource.create(attributes)


def _start_traces(
    resource: Resource, exporter: Exporter, span_directory: Path | None
) -> Callable[[], object]:
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    # Processors are flushed in this order: the disk must not wait for a collector.
    if span_directory is not None:
        provider.add_span_processor(
            BatchSpanProcessor(
                SpanFileExporter(span_directory), schedule_delay_millis=SPAN_FILE_DELAY_MS
            )
        )
    if exporter != "none":
        provider.add_span_processor(BatchSpanProcessor(_span_exporter(exporter)))
    trace.set_tracer_provider(provider)
    start_recording()
    return provider.shutdown


def _span_exporter(exporter: Exporter) -> SpanExporter:
    if exporter == "console":
        from opentelemetry.sdk.trace.export import ConsoleSpanExporter

        return ConsoleSpanExporter()
    made: SpanExporter = otlp_exporter("traces", "trace_exporter", "OTLPSpanExporter")()
    return made


def _start_metrics(resource: Resource, exporter: Exporter) -> Callable[[], object]:
    readers: list[MetricReader] = []
    if exporter != "none":
        from opentelemetry.sdk.metrics.export import (
            ConsoleMetricExporter,
            PeriodicExportingMetricReader,
        )

        if exporter == "console":
            readers.append(PeriodicExportingMetricReader(ConsoleMetricExporter()))
        else:
            made = otlp_exporter("metrics", "metric_exporter", "OTLPMetricExporter")()
            readers.append(PeriodicExportingMetricReader(made))
    provider = MeterProvider(readers, resource=resource, shutdown_on_exit=False)
    metrics.set_meter_provider(provider)
    return lambda: provider.shutdown(timeout_millis=1000 * SHUTDOWN_TIMEOUT_S)


def _start_logs(resource: Resource, exporter: Exporter) -> Callable[[], object]:
    from opentelemetry.sdk._logs.export import BatchLogRecordProcessor, LogRecordExporter

    from observability.logs import OtelLogHandler

    target: LogRecordExporter
    if exporter == "console":
        from opentelemetry.sdk._logs.export import ConsoleLogRecordExporter

        target = ConsoleLogRecordExporter()
    else:
        target = otlp_exporter("logs", "_log_exporter", "OTLPLogExporter")()
    provider = LoggerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_log_record_processor(BatchLogRecordProcessor(target))
    set_logger_provider(provider)
    handler = OtelLogHandler(provider)
    logging.getLogger().addHandler(handler)

    def stop() -> None:
        logging.getLogger().removeHandler(handler)
        provider.shutdown()

    return stop


def _configure_logging() -> None:
    from observability.logs import TraceFormatter

    root = logging.getLogger()
    if not any(isinstance(handler.formatter, TraceFormatter) for handler in root.handlers):
        handler = logging.StreamHandler()
        handler.setFormatter(TraceFormatter())
        root.addHandler(handler)
    if root.level > logging.INFO or root.level == logging.NOTSET:
        root.setLevel(logging.INFO)
    # Chatty at INFO on every connection and rebalance.
    for name in ("kafka", "aiokafka"):
        logging.getLogger(name).setLevel(logging.WARNING)
