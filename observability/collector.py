"""What Prometheus knows of the collector, by the names under which it is stored.

The collector's own metrics are those of its release (``infra/deploy/observability/compose.yaml``),
documented in opentelemetry-collector ``docs/rfcs/component-universal-telemetry.md`` and each
component's ``documentation.md``. ``up`` is Prometheus' own.
"""

from __future__ import annotations

from observability.prometheus_names import Foreign

COLLECTOR_JOB = "otel-collector"
"""The scrape job of the collector's own metrics."""

UP = Foreign(name="up", kind="gauge", unit="1")


def _counter(name: str, *labels: str, unit: str = "{item}") -> Foreign:
    return Foreign(name=name, kind="counter", unit=unit, labels=labels)


ACCEPTED = {
    "spans": _counter("otelcol_receiver_accepted_spans_total", "receiver", "transport"),
    "metric points": _counter(
        "otelcol_receiver_accepted_metric_points_total", "receiver", "transport"
    ),
}
REFUSED = {
    "spans": _counter("otelcol_receiver_refused_spans_total", "receiver", "transport"),
    "metric points": _counter(
        "otelcol_receiver_refused_metric_points_total", "receiver", "transport"
    ),
}
"""Turned away at the door, mostly by the memory limiter: senders try again, then drop."""
SEND_FAILED = {
    "spans": _counter("otelcol_exporter_send_failed_spans_total", "exporter"),
    "metric points": _counter("otelcol_exporter_send_failed_metric_points_total", "exporter"),
}
"""Given up on after every retry: lost."""
QUEUE_SIZE = Foreign(
    name="otelcol_exporter_queue_size", kind="gauge", unit="{batch}", labels=("exporter",)
)
QUEUE_CAPACITY = Foreign(
    name="otelcol_exporter_queue_capacity", kind="gauge", unit="{batch}", labels=("exporter",)
)
TRACES_SAMPLED = _counter(
    "otelcol_processor_tail_sampling_global_count_traces_sampled_total",
    "sampled",
    unit="{trace}",
)
"""Decisions of tail sampling, by ``sampled``: true or false."""
TRACES_EVICTED = _counter(
    "otelcol_processor_tail_sampling_sampling_trace_dropped_too_early_total", unit="{trace}"
)
"""Traces that made room for others before their decision."""
