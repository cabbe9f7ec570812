"""The tests' OTLP receiver, with the exporters that the platform's processes use."""

from __future__ import annotations

import gzip
import socket
import threading
from collections.abc import Iterator
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]
from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import SimpleLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.trace import Link, SpanKind, StatusCode, set_span_in_context

from tests.otlp import PROTOBUF, OtlpReceiver

RESOURCE = Resource({"service.name": "shop", "service.instance.id": "shop-1"})


@pytest.fixture
def receiver() -> Iterator[OtlpReceiver]:
    with OtlpReceiver() as made:
        yield made


def tracer_provider(
    receiver: OtlpReceiver, compression: Compression = Compression.NoCompression
) -> TracerProvider:
    provider = TracerProvider(resource=RESOURCE, shutdown_on_exit=False)
    exporter = OTLPSpanExporter(f"{receiver.url}/v1/traces", compression=compression)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider


@pytest.mark.parametrize("compression", [Compression.NoCompression, Compression.Gzip])
def test_spans_come_with_all_that_was_recorded(
    receiver: OtlpReceiver, compression: Compression
) -> None:
    provider = tracer_provider(receiver, compression)
    tracer = provider.get_tracer("shop.sales", "2")
    cause = tracer.start_span("cause", start_time=1)
    cause.end(2)
    parent = tracer.start_span("outer", start_time=5)
    span = tracer.start_span(
        "sell",
        context=set_span_in_context(parent),
        kind=SpanKind.PRODUCER,
        links=[Link(cause.get_span_context(), {"why": "asked"})],
        start_time=10,
        attributes={"text": "a", "yes": True, "whole": 3, "part": 0.5, "many": ["x", "y"]},
    )
    span.add_event("paid", {"price": 7}, timestamp=15)
    span.set_status(StatusCode.ERROR, "sold out")
    span.end(20)
    found = receiver.wait_for(
        lambda got: {one.name: one for one in got.spans if len(got.spans) > 1}
    )
    sold = found["sell"]
    assert (sold.kind, sold.start_ns, sold.end_ns) == ("producer", 10, 20)
    assert (sold.status, sold.status_message) == ("error", "sold out")
    assert (sold.scope, sold.service, sold.resource["service.instance.id"]) == (
        *("shop.sales", "shop", "shop-1"),
    )
    assert sold.attributes == {
        "text": "a",
        "yes": True,
        "whole": 3,
        "part": 0.5,
        "many": ("x", "y"),
    }
    assert [type(sold.attributes[key]) for key in ("yes", "whole", "part")] == [bool, int, float]
    [event] = sold.events
    assert (event.name, event.at_ns, event.attributes) == ("paid", 15, {"price": 7})
    [link] = sold.links
    assert (link.trace_id, link.span_id) == (found["cause"].trace_id, found["cause"].span_id)
    assert link.attributes == {"why": "asked"}
    assert sold.parent_id == f"{parent.get_span_context().span_id:016x}"
    assert sold.trace_id == f"{parent.get_span_context().trace_id:032x}"
    assert (found["cause"].parent_id, found["cause"].status) == (None, "unset")
    assert receiver.accepted == {"/v1/traces": 2}
    provider.shutdown()


def test_metrics_come_with_buckets_and_exemplars(receiver: OtlpReceiver) -> None:
    reader = PeriodicExportingMetricReader(
        OTLPMetricExporter(f"{receiver.url}/v1/metrics"), export_interval_millis=3_600_000
    )
    provider = MeterProvider([reader], resource=RESOURCE, shutdown_on_exit=False)
    meter = provider.get_meter("shop")
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("shop")
    meter.create_counter("sales", unit="{sale}", description="Sold.").add(2, {"what": "tea"})
    meter.create_up_down_counter("guests").add(-1)
    meter.create_gauge("heat").set(20.5)
    wait = meter.create_histogram("wait", unit="s", explicit_bucket_boundaries_advisory=[0.1, 1.0])
    with tracer.start_as_current_span("sell") as span:
        wait.record(0.5)
    provider.force_flush()
    found = {metric.name: metric for metric in receiver.metrics}
    sales = found["sales"]
    assert (sales.kind, sales.unit, sales.description, sales.cumulative) == (
        *("counter", "{sale}", "Sold.", True),
    )
    assert [(point.attributes, point.value) for point in sales.points] == [({"what": "tea"}, 2)]
    assert (found["guests"].kind, found["guests"].points[0].value) == ("up_down_counter", -1)
    assert (found["heat"].kind, found["heat"].points[0].value) == ("gauge", 20.5)
    assert (found["wait"].kind, found["wait"].resource["service.name"]) == ("histogram", "shop")
    [point] = found["wait"].points
    assert (point.count, point.value) == (1, 0.5)
    assert (point.bounds, point.counts) == ((0.1, 1.0), (0, 1, 0))
    [exemplar] = point.exemplars
    assert exemplar.value == 0.5
    assert exemplar.trace_id == f"{span.get_span_context().trace_id:032x}"
    assert exemplar.span_id == f"{span.get_span_context().span_id:016x}"
    provider.shutdown()


def test_logs_come_with_their_trace(receiver: OtlpReceiver) -> None:
    provider = LoggerProvider(resource=RESOURCE, shutdown_on_exit=False)
    provider.add_log_record_processor(
        SimpleLogRecordProcessor(OTLPLogExporter(f"{receiver.url}/v1/logs"))
    )
    span = TracerProvider(shutdown_on_exit=False).get_tracer("shop").start_span("sell")
    provider.get_logger("shop.sales").emit(
        LogRecord(
            timestamp=7,
            context=set_span_in_context(span),
            severity_text="WARNING",
            severity_number=SeverityNumber.WARN,
            body="sold out",
            attributes={"code.line.number": 3},
        )
    )
    [record] = receiver.wait_for(lambda got: got.logs)
    assert (record.body, record.severity, record.severity_number) == ("sold out", "WARNING", 13)
    assert (record.scope, record.at_ns, record.attributes) == (
        *("shop.sales", 7, {"code.line.number": 3}),
    )
    assert record.trace_id == f"{span.get_span_context().trace_id:032x}"
    assert record.span_id == f"{span.get_span_context().span_id:016x}"
    assert record.resource["service.name"] == "shop"
    provider.shutdown()


def post(url: str, body: bytes, **headers: str) -> tuple[int, bytes]:
    """Header names are given with underscores."""
    named = {"Content-Type": PROTOBUF} | {
        name.replace("_", "-"): value for name, value in headers.items()
    }
    try:
        with urlopen(Request(url, body, named), timeout=10) as answer:
            return answer.status, answer.read()
    except HTTPError as error:
        with error:
            return error.code, error.read()


@pytest.mark.parametrize(
    ("path", "body", "headers", "status"),
    [
        ("/v1/profiles", b"", {}, 404),
        ("/v1/traces", b"\xff\xff", {}, 400),
        ("/v1/traces", b"not gzip", {"Content_Encoding": "gzip"}, 400),
        ("/v1/traces", gzip.compress(b"a body", mtime=0)[:12], {"Content_Encoding": "gzip"}, 400),
        ("/v1/traces", b"", {"Content_Encoding": "br"}, 415),
        ("/v1/traces", b"{}", {"Content_Type": "application/json"}, 415),
    ],
)
def test_what_cannot_be_read_is_refused_and_counted(
    receiver: OtlpReceiver, path: str, body: bytes, headers: dict[str, str], status: int
) -> None:
    found, answer = post(receiver.url + path, body, **headers)
    assert found == status
    assert Status.FromString(answer).message
    assert (receiver.refused, receiver.accepted, receiver.spans) == ({status: 1}, {}, ())


def test_an_accepted_request_is_answered_with_the_signals_response(receiver: OtlpReceiver) -> None:
    empty = ExportTraceServiceRequest().SerializeToString()
    status, answer = post(
        f"{receiver.url}/v1/traces", gzip.compress(empty), Content_Encoding="gzip"
    )
    assert status == 200
    assert ExportTraceServiceResponse.FromString(answer) == ExportTraceServiceResponse()
    assert (receiver.accepted, receiver.refused) == ({"/v1/traces": 1}, {})


def test_an_exporter_tries_again_after_503(receiver: OtlpReceiver) -> None:
    receiver.behave("unavailable")
    provider = tracer_provider(receiver)
    ending = threading.Thread(target=lambda: provider.get_tracer("shop").start_span("sell").end())
    ending.start()
    receiver.wait_for(lambda got: got.refused[503])
    assert receiver.spans == ()
    receiver.behave("accept")
    receiver.wait_for(lambda got: got.spans)
    ending.join()
    provider.shutdown()


def test_a_request_hangs_until_the_receiver_accepts(receiver: OtlpReceiver) -> None:
    receiver.behave("hang")
    provider = tracer_provider(receiver)
    ending = threading.Thread(target=lambda: provider.get_tracer("shop").start_span("sell").end())
    ending.start()
    receiver.wait_for(lambda got: got.hanging)
    assert receiver.spans == ()
    receiver.behave("accept")
    assert [span.name for span in receiver.wait_for(lambda got: got.spans)] == ["sell"]
    ending.join()
    assert receiver.hanging == 0
    provider.shutdown()


def test_closing_lets_go_of_what_hangs_and_of_idle_connections() -> None:
    receiver = OtlpReceiver("hang")
    port = int(receiver.url.rpartition(":")[2])
    ended: list[bytes] = []

    def ask() -> None:
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(b"POST /v1/traces HTTP/1.1\r\nContent-Length: 0\r\n\r\n")
            ended.append(connection.recv(100))

    with socket.create_connection(("127.0.0.1", port)) as idle:
        asking = threading.Thread(target=ask)
        asking.start()
        receiver.wait_for(lambda got: got.hanging)
        receiver.close()
        receiver.close()
        asking.join()
        assert idle.recv(100) == b""
    assert ended == [b""]
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
        pass


def test_waiting_in_vain_says_what_did_arrive(receiver: OtlpReceiver) -> None:
    provider = tracer_provider(receiver)
    provider.get_tracer("shop").start_span("sell").end()
    with pytest.raises(TimeoutError, match="shop: sell"):
        receiver.wait_for(lambda got: got.logs, timeout_s=0.01)
    provider.shutdown()
