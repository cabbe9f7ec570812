"""An OTLP/HTTP receiver in this process, which keeps what exporters send (``tests.telemetry``).

It speaks protobuf, plain or gzip, on ``/v1/traces``, ``/v1/metrics`` and ``/v1/logs``, answers as a
collector does, and can be told to answer 503 or not at all.

Source: open-telemetry/opentelemetry-proto ``docs/specification.md`` (OTLP/HTTP).
"""

from __future__ import annotations

import gzip
import socket
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
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

from tests.telemetry import Log, Metric, Span, logs_of, metrics_of, spans_of

Behaviour = Literal["accept", "unavailable", "hang"]
T = TypeVar("T")

PROTOBUF = "application/x-protobuf"
_INVALID_ARGUMENT, _UNAVAILABLE = 3, 14
"""Codes of google.rpc.Code."""


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

    def __exit__(self, *_: object) -> None:
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
            self._spans += spans_of(message)
        elif isinstance(message, ExportMetricsServiceRequest):
            self._metrics += metrics_of(message)
        else:
            self._logs += logs_of(message)
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
