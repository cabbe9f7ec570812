"""Server spans and durations of the gateway, as a collector has them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

import observability.tracing
import producers.gateway.tracing
from producers.gateway.tracing import Traced
from tests.conventions import problems
from tests.otlp import OtlpReceiver
from tests.telemetry import Span


class _WithRoute(Route):
    """Starlette notes no route in the scope; FastAPI does."""

    def matches(self, scope):  # type: ignore[no-untyped-def]
        match, child = super().matches(scope)
        return match, {**child, "route": self} if child else child


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[OtlpReceiver]:
    monkeypatch.setattr(observability.tracing, "_recording", True)
    with OtlpReceiver() as receiver:
        provider = TracerProvider()
        exporter = OTLPSpanExporter(endpoint=f"{receiver.url}/v1/traces")
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        monkeypatch.setattr(producers.gateway.tracing, "_TRACER", provider.get_tracer("gateway"))
        yield receiver
        provider.shutdown()


def called(collector: OtlpReceiver, method: str, path: str, **options: object) -> Span:
    async def answer(request: Request) -> PlainTextResponse:
        if request.path_params["name"] == "broken":
            return PlainTextResponse("no worker", 503)
        return PlainTextResponse("fine")

    routes = [_WithRoute("/v1/requests/{name}", answer, methods=["GET", "DELETE"])]
    client = TestClient(Traced(Starlette(routes=routes)))
    client.request(method, path, **options)  # type: ignore[arg-type]
    (span,) = collector.wait_for(lambda receiver: receiver.spans)
    return span


def test_a_call_is_a_span_by_its_route(collector: OtlpReceiver) -> None:
    parent = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
    span = called(collector, "GET", "/v1/requests/r1", headers={"traceparent": parent})
    assert problems(span) == []
    assert (span.name, span.kind) == ("GET /v1/requests/{name}", "server")
    assert (span.trace_id, span.parent_id) == ("a" * 32, "b" * 16)
    assert span.attributes["url.path"] == "/v1/requests/r1"
    assert span.status == "unset"


def test_a_failure_names_its_status(collector: OtlpReceiver) -> None:
    span = called(collector, "DELETE", "/v1/requests/broken")
    assert problems(span) == []
    assert (span.status, span.attributes["error.type"]) == ("error", "503")


def test_a_path_that_is_none_of_ours_names_nothing(collector: OtlpReceiver) -> None:
    span = called(collector, "GET", "/wp-admin/setup.php")
    assert problems(span) == []
    assert span.name == "GET"
    assert "http.route" not in span.attributes
