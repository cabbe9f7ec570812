"""Spans, metrics and logs as Python values, and how OTLP's protobuf messages become them.

Ids are lower-case hex, times epoch nanoseconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1 import common_pb2
from opentelemetry.proto.logs.v1 import logs_pb2
from opentelemetry.proto.metrics.v1 import metrics_pb2
from opentelemetry.proto.trace.v1 import trace_pb2

Value = str | bool | int | float | bytes | tuple["Value", ...] | Mapping[str, "Value"] | None
Attributes = Mapping[str, Value]
SpanKind = Literal["unspecified", "internal", "server", "client", "producer", "consumer"]
SpanStatus = Literal["unset", "ok", "error"]
MetricKind = Literal[
    "counter", "up_down_counter", "gauge", "histogram", "exponential_histogram", "summary", "none"
]

_SPAN_KINDS: tuple[SpanKind, ...] = get_args(SpanKind)
_STATUSES: tuple[SpanStatus, ...] = get_args(SpanStatus)
"""In the order of their numbers in protobuf."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """Of a span."""

    name: str
    at_ns: int
    attributes: Attributes


@dataclass(frozen=True, kw_only=True)
class Link:
    """From a span to another one."""

    trace_id: str
    span_id: str
    attributes: Attributes


@dataclass(frozen=True, kw_only=True)
class Span:
    """``resource``: attributes of the process that sent it. ``scope``: its tracer's name."""

    resource: Attributes
    scope: str
    name: str
    kind: SpanKind
    trace_id: str
    span_id: str
    parent_id: str | None
    start_ns: int
    end_ns: int
    attributes: Attributes
    events: tuple[Event, ...] = ()
    links: tuple[Link, ...] = ()
    status: SpanStatus = "unset"
    status_message: str = ""

    @property
    def service(self) -> str:
        """``service.name``."""
        return str(self.resource.get("service.name", ""))


@dataclass(frozen=True, kw_only=True)
class Exemplar:
    """One measurement that a point remembers; ids are empty outside a span."""

    value: float
    trace_id: str
    span_id: str
    attributes: Attributes


@dataclass(frozen=True, kw_only=True)
class Point:
    """One series of a metric. ``value``: of a counter or gauge, and the sum of a histogram.

    ``bounds`` and ``counts`` (one more than bounds) are a histogram's, ``count`` all of them.
    """

    attributes: Attributes
    value: float
    start_ns: int
    at_ns: int
    count: int = 0
    bounds: tuple[float, ...] = ()
    counts: tuple[int, ...] = ()
    exemplars: tuple[Exemplar, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One metric of one collection. ``cumulative`` is false for deltas, and for gauges."""

    resource: Attributes
    scope: str
    name: str
    kind: MetricKind
    unit: str
    description: str
    points: tuple[Point, ...]
    cumulative: bool = False


@dataclass(frozen=True, kw_only=True)
class Log:
    """One log record; ids are empty outside a span."""

    resource: Attributes
    scope: str
    body: Value
    severity: str
    severity_number: int
    at_ns: int
    trace_id: str
    span_id: str
    attributes: Attributes


def spans_of(message: ExportTraceServiceRequest) -> Iterator[Span]:
    """All spans of an export."""
    for resource, scope, span in _scoped(message.resource_spans, "scope_spans", "spans"):
        yield _span(span, resource, scope)


def _span(span: trace_pb2.Span, resource: Attributes, scope: str) -> Span:
    return Span(
        resource=resource,
        scope=scope,
        name=span.name,
        kind=_SPAN_KINDS[span.kind],
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex() or None,
        start_ns=span.start_time_unix_nano,
        end_ns=span.end_time_unix_nano,
        attributes=_attributes(span.attributes),
        events=tuple(
            Event(
                name=event.name,
                at_ns=event.time_unix_nano,
                attributes=_attributes(event.attributes),
            )
            for event in span.events
        ),
        links=tuple(
            Link(
                trace_id=link.trace_id.hex(),
                span_id=link.span_id.hex(),
                attributes=_attributes(link.attributes),
            )
            for link in span.links
        ),
        status=_STATUSES[span.status.code],
        status_message=span.status.message,
    )


def metrics_of(message: ExportMetricsServiceRequest) -> Iterator[Metric]:
    """All metrics of an export."""
    for resource, scope, metric in _scoped(message.resource_metrics, "scope_metrics", "metrics"):
        kind, cumulative, points = _data(metric)
        yield Metric(
            resource=resource,
            scope=scope,
            name=metric.name,
            kind=kind,
            unit=metric.unit,
            description=metric.description,
            points=points,
            cumulative=cumulative,
        )


def _data(metric: metrics_pb2.Metric) -> tuple[MetricKind, bool, tuple[Point, ...]]:
    """Kind, whether cumulative, points. Of other kinds than the SDK's default only the kind."""
    cumulative = metrics_pb2.AGGREGATION_TEMPORALITY_CUMULATIVE
    match metric.WhichOneof("data"):
        case "gauge":
            return "gauge", False, tuple(map(_number_point, metric.gauge.data_points))
        case "sum":
            return (
                "counter" if metric.sum.is_monotonic else "up_down_counter",
                metric.sum.aggregation_temporality == cumulative,
                tuple(map(_number_point, metric.sum.data_points)),
            )
        case "histogram":
            return (
                "histogram",
                metric.histogram.aggregation_temporality == cumulative,
                tuple(map(_histogram_point, metric.histogram.data_points)),
            )
        case "exponential_histogram":
            return "exponential_histogram", False, ()
        case "summary":
            return "summary", False, ()
        case _:
            return "none", False, ()


def _number_point(point: metrics_pb2.NumberDataPoint) -> Point:
    return Point(
        attributes=_attributes(point.attributes),
        value=_number(point),
        start_ns=point.start_time_unix_nano,
        at_ns=point.time_unix_nano,
        exemplars=_exemplars(point.exemplars),
    )


def _histogram_point(point: metrics_pb2.HistogramDataPoint) -> Point:
    return Point(
        attributes=_attributes(point.attributes),
        value=point.sum,
        start_ns=point.start_time_unix_nano,
        at_ns=point.time_unix_nano,
        count=point.count,
        bounds=tuple(point.explicit_bounds),
        counts=tuple(point.bucket_counts),
        exemplars=_exemplars(point.exemplars),
    )


def _number(one: metrics_pb2.NumberDataPoint | metrics_pb2.Exemplar) -> float:
    return one.as_int if one.WhichOneof("value") == "as_int" else one.as_double


def _exemplars(exemplars: Iterable[metrics_pb2.Exemplar]) -> tuple[Exemplar, ...]:
    return tuple(
        Exemplar(
            value=_number(one),
            trace_id=one.trace_id.hex(),
            span_id=one.span_id.hex(),
            attributes=_attributes(one.filtered_attributes),
        )
        for one in exemplars
    )


def logs_of(message: ExportLogsServiceRequest) -> Iterator[Log]:
    """All log records of an export."""
    for resource, scope, record in _scoped(message.resource_logs, "scope_logs", "log_records"):
        yield _log(record, resource, scope)


def _log(record: logs_pb2.LogRecord, resource: Attributes, scope: str) -> Log:
    return Log(
        resource=resource,
        scope=scope,
        body=_value(record.body),
        severity=record.severity_text,
        severity_number=record.severity_number,
        at_ns=record.time_unix_nano,
        trace_id=record.trace_id.hex(),
        span_id=record.span_id.hex(),
        attributes=_attributes(record.attributes),
    )


def _scoped(
    resources: Iterable[Any], scopes: str, items: str
) -> Iterator[tuple[Attributes, str, Any]]:
    """Each item of an export, with its resource and its scope: all signals nest alike."""
    for of_resource in resources:
        resource = _attributes(of_resource.resource.attributes)
        for of_scope in getattr(of_resource, scopes):
            for item in getattr(of_scope, items):
                yield resource, of_scope.scope.name, item


def _attributes(pairs: Iterable[common_pb2.KeyValue]) -> Attributes:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: common_pb2.AnyValue) -> Value:
    match value.WhichOneof("value"):
        case "string_value":
            return value.string_value
        case "bool_value":
            return value.bool_value
        case "int_value":
            return value.int_value
        case "double_value":
            return value.double_value
        case "bytes_value":
            return value.bytes_value
        case "array_value":
            return tuple(map(_value, value.array_value.values))
        case "kvlist_value":
            return _attributes(value.kvlist_value.values)
        case _:
            return None
