"""A collector's stand-in, in a process of its own: it takes what exporters send, and looks later.

``receive`` answers as a collector does and keeps the bodies as they came; they are decoded when
the measuring process asks what was found, so that reading costs the measured side no CPU time that
a collector elsewhere would not. ``hang`` takes requests and never answers.
"""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Mapping
from typing import Any, Literal

import click
from aiohttp import web
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from benchmarks.rpc import keep_stdout, serve

SIGNALS = ("traces", "metrics", "logs")
MAX_BODY_BYTES = 64 * 1024 * 1024


class Sink:
    """Bodies by signal, with their encodings."""

    def __init__(self, *, hangs: bool) -> None:
        self._hangs = hangs
        self._bodies: dict[str, list[tuple[str, bytes]]] = {signal: [] for signal in SIGNALS}
        self.exports = 0

    async def take(self, request: web.Request) -> web.Response:
        """One export. An empty body is the empty response of every signal."""
        self.exports += 1
        body = await request.read()
        if self._hangs:
            await asyncio.Event().wait()
        encoding = request.headers.get("Content-Encoding", "identity")
        self.keep(request.match_info["signal"], encoding, body)
        return web.Response(content_type="application/x-protobuf")

    def keep(self, signal: str, encoding: str, body: bytes) -> None:
        """A body as it came."""
        self._bodies[signal].append((encoding, body))

    def found(self, topic: str) -> dict[str, Any]:
        """Counts. ``traces``: those with a span in which a record of ``topic`` was processed.

        A span that was sent twice, after a timeout, counts once.
        """
        names: dict[str, int] = {}
        ids: set[bytes] = set()
        traces: set[bytes] = set()
        for body in self._opened("traces"):
            for of_resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                for of_scope in of_resource.scope_spans:
                    for span in of_scope.spans:
                        if span.span_id in ids:
                            continue
                        ids.add(span.span_id)
                        names[span.name] = names.get(span.name, 0) + 1
                        consumed = span.kind == Span.SpanKind.SPAN_KIND_CONSUMER
                        if consumed and span.name.endswith(topic):
                            traces.add(span.trace_id)
        metrics = {
            metric.name
            for body in self._opened("metrics")
            for of_resource in ExportMetricsServiceRequest.FromString(body).resource_metrics
            for of_scope in of_resource.scope_metrics
            for metric in of_scope.metrics
        }
        logs = sum(
            len(of_scope.log_records)
            for body in self._opened("logs")
            for of_resource in ExportLogsServiceRequest.FromString(body).resource_logs
            for of_scope in of_resource.scope_logs
        )
        return {
            "exports": self.exports,
            "bytes": sum(len(body) for bodies in self._bodies.values() for _, body in bodies),
            "spans": len(ids),
            "spans_by_name": dict(sorted(names.items())),
            "traces": len(traces),
            "metrics": len(metrics),
            "logs": logs,
        }

    def _opened(self, signal: str) -> list[bytes]:
        return [
            gzip.decompress(body) if encoding == "gzip" else body
            for encoding, body in self._bodies[signal]
        ]


async def _run(behaviour: Literal["receive", "hang"]) -> None:
    sink = Sink(hangs=behaviour == "hang")
    app = web.Application(client_max_size=MAX_BODY_BYTES)
    app.router.add_post("/v1/{signal:traces|metrics|logs}", sink.take)
    # Bodies stay as they were sent until somebody looks.
    runner = web.AppRunner(app, access_log=None, auto_decompress=False, shutdown_timeout=0.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}"

        async def handle(command: Mapping[str, Any]) -> Any:
            if "topic" in command:
                return sink.found(command["topic"])
            return {"url": url, "exports": sink.exports}

        await serve(handle)
    finally:
        await runner.cleanup()


@click.command()
@click.argument("behaviour", type=click.Choice(["receive", "hang"]))
def main(behaviour: Literal["receive", "hang"]) -> None:
    """Take what is sent, until the input ends."""
    keep_stdout()
    asyncio.run(_run(behaviour))


if __name__ == "__main__":
    main()
