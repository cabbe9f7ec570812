"""What the instruments of the catalogue record, in this process, while a test looks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    Gauge,
    Histogram,
    HistogramDataPoint,
    InMemoryMetricReader,
    Metric,
    Sum,
)

from observability import instruments
from observability.instruments import CATALOGUE
from observability.metrics import metric_views


@dataclass(frozen=True)
class Metered:
    """Metrics as they stand now. A series is named by its attributes' values, in order of keys."""

    reader: InMemoryMetricReader

    def metrics(self) -> dict[str, Metric]:
        data = self.reader.get_metrics_data()
        if data is None:
            return {}
        return {
            metric.name: metric
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }

    def points(self, name: str) -> Mapping[tuple[str, ...], Any]:
        metric = self.metrics().get(name)
        return {
            tuple(str(value) for _, value in sorted((point.attributes or {}).items())): point
            for point in (metric.data.data_points if metric is not None else ())
        }

    def values(self, name: str) -> Mapping[tuple[str, ...], float]:
        """Of a histogram: how many were recorded."""
        return {
            where: point.count if isinstance(point, HistogramDataPoint) else point.value
            for where, point in self.points(name).items()
        }


@contextmanager
def metered(*, views: bool = False) -> Iterator[Metered]:
    """Instruments record here for a while. Without ``views`` all attributes are kept."""
    reader = InMemoryMetricReader()
    provider = MeterProvider(
        [reader], shutdown_on_exit=False, views=metric_views() if views else ()
    )
    # What setting the process's provider would do, which can be done once and not be undone.
    meter: Any = instruments._METER
    meter.on_set_meter_provider(provider)
    try:
        yield Metered(reader)
    finally:
        meter._real_meter = None
        for instrument in meter._instruments:
            instrument._real_instrument = None
        provider.shutdown()


def problems(metrics: Mapping[str, Metric]) -> list[str]:
    """In what they differ from the catalogue."""
    found: list[str] = []
    for name, metric in metrics.items():
        listed = CATALOGUE.get(name)
        if listed is None:
            found.append(f"{name} is not in the catalogue")
            continue
        if (metric.unit, _kind(metric)) != (listed.unit, listed.kind):
            found.append(f"{name} is a {_kind(metric)} of {metric.unit}")
        for point in metric.data.data_points:
            unknown = set(point.attributes or {}) - set(listed.attributes)
            found += [f"{name} has {key}" for key in sorted(unknown)]
            if isinstance(point, HistogramDataPoint) and (
                tuple(point.explicit_bounds) != tuple(map(float, listed.buckets))
            ):
                found.append(f"{name} has other buckets: {point.explicit_bounds}")
    return found


def _kind(metric: Metric) -> str:
    match metric.data:
        case Sum(is_monotonic=monotonic):
            return "counter" if monotonic else "up_down_counter"
        case Gauge():
            return "gauge"
        case Histogram():
            return "histogram"
        case _:
            return type(metric.data).__name__
