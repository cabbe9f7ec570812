"""What Prometheus calls the catalogue's metrics and attributes. No I/O.

Names are those after the OTLP translation with unit and type suffixes: what the collector's
``prometheus`` exporter serves, and what Prometheus' own OTLP receiver and its cousins (Mimir,
Grafana Cloud) store by default. What a process serves itself has the same names:
``observability.metrics`` adds the ``_ratio`` that opentelemetry-exporter-prometheus leaves off.

Sources: OpenTelemetry specification, "Prometheus and OpenMetrics Compatibility";
prometheus/otlptranslator ``metric_namer.go``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from observability.instruments import Kind, Metric

_UNITS = {"s": "seconds", "ms": "milliseconds", "By": "bytes", "%": "percent"}
_PER = {"s": "second", "min": "minute", "h": "hour", "d": "day"}


@dataclass(frozen=True, kw_only=True)
class Foreign:
    """A series that others make, by its Prometheus name; of ``labels`` beside job and instance."""

    name: str
    kind: Kind
    unit: str
    labels: tuple[str, ...] = ()


def label_name(attribute: str) -> str:
    """Of an attribute, as Prometheus has it."""
    return re.sub(r"[^a-zA-Z0-9]+", "_", attribute)


def prometheus_name(source: Metric | Foreign) -> str:
    """A histogram's is without the suffix of its three series."""
    if isinstance(source, Foreign):
        return source.name
    name = re.sub(r"[^a-zA-Z0-9:]+", "_", source.name)
    for suffix in _suffixes(source):
        if not name.endswith(f"_{suffix}"):
            name = f"{name}_{suffix}"
    return name


def series_names(source: Metric | Foreign) -> tuple[str, ...]:
    """Every name under which Prometheus stores it."""
    name = prometheus_name(source)
    if source.kind == "histogram":
        return tuple(f"{name}_{part}" for part in ("bucket", "count", "sum"))
    return (name,)


def _suffixes(source: Metric) -> Iterable[str]:
    unit = re.sub(r"{[^}]*}", "", source.unit)
    top, _, bottom = unit.partition("/")
    if top and top != "1":
        yield _UNITS[top]
    if bottom:
        yield f"per_{_PER[bottom]}"
    if source.kind == "counter":
        yield "total"
    if unit == "1" and source.kind == "gauge":
        yield "ratio"
