"""An OTLP/HTTP receiver in this process: what an exporter sends, as Python values.

It speaks protobuf, plain or gzip, on ``/v1/traces``, ``/v1/metrics`` and ``/v1/logs``, answers as a
collector does, and can be told to answer 503 or not at all. Ids are lower-case hex, times epoch
nanoseconds.

Source: open-telemetry/opentelemetry-proto ``docs/specification.md`` (OTLP/HTTP).
"""

from __future__ import annotations

import gzip
import socket
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Literal, Self, TypeVar

from google.protobuf.message import DecodeError, Message  # type: ignore[import-untyped]
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import (
    ExportLogsServiceRequest,
    ExportLogsServiceResponse,
)
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
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
Behaviour = Literal["accept", "unavailable", "hang"]
T = TypeVar("T")

PROTOBUF = "application/x-protobuf"
_SPAN_KINDS: tuple[SpanKind, ...] = (
    *("unspecified", "internal", "server", "client", "producer", "consumer"),
)
_STATUSES: tuple[SpanStatus, ...] = ("unset", "ok", "error")
_INVALID_ARGUMENT, _UNAVAILABLE = 3, 14
"""Codes of google.rpc.Code."""


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


@dataclass(frozen=True)
class _Signal:
    request: type[
        ExportTraceServiceRequest | ExportMetricsServiceRequest | ExportLogsServiceRequest
    ]
    response: type[Message]


_SIGNALS = {
    "/v1/traces": _Signal(ExportTraceServiceRequest, ExportTraceServiceResponse),
    "/v1/metrics": _Signal(ExportMetricsServiceRequest, ExportMetricsServiceResponse),
    "/v1/logs": _Signal(ExportLogsServiceRequest, ExportLogsServiceResponse),
}


class OtlpReceiver:
    """A context manager; it listens on a free port of loopback from its construction."""

    def __init__(self, behaviour: Behaviour = "accept") -> None:
        self._changed = threading.Condition(threading.RLock())
        self._behaviour = behaviour
        self._closed = False
        self._hanging = 0
        self._spans: list[Span] = []
        self._metrics: list[Metric] = []
        self._logs: list[Log] = []
        self._accepted: Counter[str] = Counter()
        self._refused: Counter[int] = Counter()
        self._server = _Server(self)
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, name="otlp-receiver"
        )
        self._thread.start()

    @property
    def url(self) -> str:
        """The endpoint, without a signal's path or a slash at its end."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def environment(self) -> dict[str, str]:
        """What makes a process send everything here, at once where the SDK has a say in it."""
        return {
            "OTEL_EXPORTER_OTLP_ENDPOINT": self.url,
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            "OTEL_BSP_SCHEDULE_DELAY": "100",
            "OTEL_BLRP_SCHEDULE_DELAY": "100",
            "OTEL_METRIC_EXPORT_INTERVAL": "250",
        }

    @property
    def spans(self) -> tuple[Span, ...]:
        """All so far, in order of arrival."""
        with self._changed:
            return tuple(self._spans)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """All so far: the same metric once for each collection."""
        with self._changed:
            return tuple(self._metrics)

    @property
    def logs(self) -> tuple[Log, ...]:
        """All so far, in order of arrival."""
        with self._changed:
            return tuple(self._logs)

    @property
    def accepted(self) -> Counter[str]:
        """Requests that were answered with 200, by path."""
        with self._changed:
            return self._accepted.copy()

    @property
    def refused(self) -> Counter[int]:
        """Requests that were answered with anything else, by status."""
        with self._changed:
            return self._refused.copy()

    @property
    def hanging(self) -> int:
        """Requests that wait for an answer now."""
        with self._changed:
            return self._hanging

    def behave(self, behaviour: Behaviour) -> None:
        """From now on; requests that hang are answered by the new rule."""
        with self._changed:
            self._behaviour = behaviour
            self._changed.notify_all()

    def wait_for(self, predicate: Callable[[Self], T], timeout_s: float = 30.0) -> T:
        """What ``predicate`` says of the receiver as soon as that is true.

        It is asked again whenever something arrives. Raises TimeoutError, with what did arrive.
        """
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while not (found := predicate(self)):
                if not self._changed.wait(deadline - time.monotonic()):
                    raise TimeoutError(f"not within {timeout_s:g} s; {self._summary()}")
            return found

    def close(self) -> None:
        """Stop listening and let go of every connection. Safe to call twice."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._changed.notify_all()
        self._server.shutdown()
        self._server.disconnect()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def answer(self, path: str, headers: Mapping[str, str], body: bytes) -> tuple[int, bytes]:
        """Status and body for one request; 0 for none at all. Called by the server's threads."""
        with self._changed:
            self._hanging += 1
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._behaviour != "hang" or self._closed)
            self._hanging -= 1
            if self._closed:
                return 0, b""
            status, answer = self._answered(path, headers, body)
            if status == 200:
                self._accepted[path] += 1
            else:
                self._refused[status] += 1
            self._changed.notify_all()
            return status, answer

    def _answered(self, path: str, headers: Mapping[str, str], body: bytes) -> tuple[int, bytes]:
        if self._behaviour == "unavailable":
            return 503, _status(_UNAVAILABLE, "not now")
        signal = _SIGNALS.get(path)
        if signal is None:
            return 404, _status(_INVALID_ARGUMENT, f"no signal at {path}")
        kind = headers.get("content-type", "").partition(";")[0].strip()
        if kind != PROTOBUF:
            return 415, _status(_INVALID_ARGUMENT, f"content type {kind!r}, not {PROTOBUF}")
        encoding = headers.get("content-encoding", "identity")
        if encoding not in ("identity", "gzip"):
            return 415, _status(_INVALID_ARGUMENT, f"content encoding {encoding!r}")
        try:
            message = signal.request.FromString(
                gzip.decompress(body) if encoding == "gzip" else body
            )
        except (DecodeError, OSError, EOFError, zlib.error) as error:
            return 400, _status(_INVALID_ARGUMENT, f"not to be read: {error}")
        if isinstance(message, ExportTraceServiceRequest):
            self._spans += _spans(message)
        elif isinstance(message, ExportMetricsServiceRequest):
            self._metrics += _metrics(message)
        else:
            self._logs += _logs(message)
        return 200, signal.response().SerializeToString()

    def _summary(self) -> str:
        spans = Counter(f"{span.service}: {span.name}" for span in self._spans)
        metrics = sorted({metric.name for metric in self._metrics})
        return (
            f"spans {dict(spans)}, metrics {metrics}, logs {[log.body for log in self._logs]}, "
            f"refused {dict(self._refused)}, hanging {self._hanging}"
        )


class _Server(ThreadingHTTPServer):
    # Threads are waited for, so nothing of a receiver outlives it.
    daemon_threads = False

    def __init__(self, receiver: OtlpReceiver) -> None:
        self.receiver = receiver
        self._connections: set[socket.socket] = set()
        self._lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), _Handler)

    def connected(self, connection: socket.socket) -> None:
        with self._lock:
            self._connections.add(connection)

    def disconnected(self, connection: socket.socket) -> None:
        with self._lock:
            self._connections.discard(connection)

    def disconnect(self) -> None:
        """End the reads of idle connections, which would go on for as long as an exporter lives."""
        with self._lock:
            for connection in self._connections:
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:
                    continue  # its other end was faster


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Header and body are two writes; the second must not wait for the first one's acknowledgement.
    disable_nagle_algorithm = True
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.server.connected(self.connection)

    def finish(self) -> None:
        self.server.disconnected(self.connection)
        try:
            super().finish()
        except OSError:
            return  # its other end has given up

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        status, answer = self.server.receiver.answer(self.path, headers, body)
        if not status:
            self.close_connection = True
            return
        try:
            self.send_response(status)
            self.send_header("Content-Type", PROTOBUF)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)
        except OSError:
            self.close_connection = True

    def handle(self) -> None:
        try:
            super().handle()
        except OSError:
            return  # the exporter's process has ended

    def log_message(self, format: str, *args: object) -> None:
        """Tests say what they miss."""


def _status(code: int, message: str) -> bytes:
    return bytes(Status(code=code, message=message).SerializeToString())


def _spans(message: ExportTraceServiceRequest) -> Iterator[Span]:
    for of_resource in message.resource_spans:
        resource = _attributes(of_resource.resource.attributes)
        for of_scope in of_resource.scope_spans:
            for span in of_scope.spans:
                yield _span(span, resource, of_scope.scope.name)


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


def _metrics(message: ExportMetricsServiceRequest) -> Iterator[Metric]:
    for of_resource in message.resource_metrics:
        resource = _attributes(of_resource.resource.attributes)
        for of_scope in of_resource.scope_metrics:
            for metric in of_scope.metrics:
                kind, cumulative, points = _data(metric)
                yield Metric(
                    resource=resource,
                    scope=of_scope.scope.name,
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
        value=point.as_int if point.WhichOneof("value") == "as_int" else point.as_double,
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


def _exemplars(exemplars: Iterable[metrics_pb2.Exemplar]) -> tuple[Exemplar, ...]:
    return tuple(
        Exemplar(
            value=one.as_int if one.WhichOneof("value") == "as_int" else one.as_double,
            trace_id=one.trace_id.hex(),
            span_id=one.span_id.hex(),
            attributes=_attributes(one.filtered_attributes),
        )
        for one in exemplars
    )


def _logs(message: ExportLogsServiceRequest) -> Iterator[Log]:
    for of_resource in message.resource_logs:
        resource = _attributes(of_resource.resource.attributes)
        for of_scope in of_resource.scope_logs:
            for record in of_scope.log_records:
                yield _log(record, resource, of_scope.scope.name)


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
