"""Spans as JSON lines on disk: written by each process, read back into the path of one trace.

How the spans of several traces belong together is ``infra.terminal``'s business.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.util.types import Attributes

MAX_FILE_BYTES = 64 * 1024 * 1024

Value = str | int | float | bool


@dataclass(frozen=True, kw_only=True)
class SpanLink:
    """What a span points at: a span, or some span of a trace where ``span_id`` is empty."""

    trace_id: str
    span_id: str = ""
    attributes: dict[str, Value] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class SpanRecord:
    """One finished span. Times are epoch nanoseconds; ids are lower-case hex.

    ``links``: trace ids, with ``linked`` in full; older lines have the former only.
    ``message``: what went wrong, if anything did: the status, or else the last exception.
    ``instance``: ``service.instance.id``, where the process has one.
    """

    service: str
    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str | None
    start_ns: int
    end_ns: int
    status: str
    attributes: dict[str, Value]
    links: tuple[str, ...] = ()
    linked: tuple[SpanLink, ...] = ()
    message: str = ""
    instance: str = ""

    @property
    def pointers(self) -> tuple[SpanLink, ...]:
        """``linked``, or what ``links`` tells of it."""
        return self.linked or tuple(SpanLink(trace_id=one) for one in self.links)


class SpanFileExporter(SpanExporter):
    """Appends to ``DIRECTORY/SERVICE-PID.jsonl``; a batch is one write, so lines stay whole.

    A file of ``max_bytes`` moves to ``SERVICE-PID.old.jsonl``, over the one before it: a process
    takes twice that at most, plus a batch.
    """

    def __init__(self, directory: Path, *, max_bytes: int = MAX_FILE_BYTES) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._max_bytes = max_bytes
        self._lock = threading.Lock()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Write a batch."""
        if not spans:
            return SpanExportResult.SUCCESS
        service = str(spans[0].resource.attributes.get("service.name", "unknown"))
        path = self._directory / f"{service.replace('/', '_')}-{os.getpid()}.jsonl"
        lines = "".join(json.dumps(_as_row(span)) + "\n" for span in spans)
        try:
            with self._lock:
                if path.exists() and path.stat().st_size >= self._max_bytes:
                    path.replace(path.with_suffix(".old.jsonl"))
                with path.open("ab", buffering=0) as stream:
                    stream.write(lines.encode())
        except OSError:
            return SpanExportResult.FAILURE
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """Every batch was closed as it was written."""

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Nothing is held back here."""
        return True


def _as_row(span: ReadableSpan) -> dict[str, object]:
    context = span.get_span_context()
    assert context is not None
    return {
        "service": str(span.resource.attributes.get("service.name", "unknown")),
        "name": span.name,
        "kind": span.kind.name.lower(),
        "trace_id": f"{context.trace_id:032x}",
        "span_id": f"{context.span_id:016x}",
        "parent_id": f"{span.parent.span_id:016x}" if span.parent else None,
        "start_ns": span.start_time or 0,
        "end_ns": span.end_time or 0,
        "status": span.status.status_code.name.lower(),
        "attributes": _plain(span.attributes),
        "links": [f"{link.context.trace_id:032x}" for link in span.links],
        "linked": [
            {
                "trace_id": f"{link.context.trace_id:032x}",
                "span_id": f"{link.context.span_id:016x}",
                "attributes": _plain(link.attributes),
            }
            for link in span.links
        ],
        "message": _message(span),
        "instance": str(span.resource.attributes.get("service.instance.id", "")),
    }


def _plain(attributes: Attributes) -> dict[str, Value]:
    return {
        key: ", ".join(str(one) for one in value)
        if isinstance(value, list | tuple)
        else value
        if isinstance(value, str | int | float | bool)
        else str(value)
        for key, value in (attributes or {}).items()
    }


def _message(span: ReadableSpan) -> str:
    raised = [event.attributes or {} for event in span.events if event.name == "exception"]
    last = raised[-1] if raised else {}
    named = (str(last[name]) for name in ("exception.type", "exception.message") if name in last)
    return span.status.description or ": ".join(named)


def read_spans(directory: Path) -> list[SpanRecord]:
    """Every span in a folder of span files; a line cut short by a crash is left out."""
    decoder = msgspec.json.Decoder(SpanRecord)
    spans = []
    for path in sorted(directory.glob("*.jsonl")):
        for line in path.read_bytes().splitlines():
            try:
                spans.append(decoder.decode(line))
            except (msgspec.DecodeError, UnicodeDecodeError):
                continue
    return spans


def trace_hops(spans: Iterable[SpanRecord], trace_id: str) -> list[str]:
    """``service: span`` of one trace and of the spans that link to it, in order of start.

    A parent comes before its children even where two machines' clocks say otherwise. A name that
    repeats in one service (many feedback events, say) is listed once, with its count.
    """
    counts: dict[str, int] = {}
    mine = {span.span_id: span for span in spans if trace_id in (span.trace_id, *span.links)}

    def order(span: SpanRecord) -> tuple[int, int, int]:
        start, depth = span.start_ns, 0
        seen = {span.span_id}
        parent = mine.get(span.parent_id or "")
        while parent is not None and parent.span_id not in seen:
            seen.add(parent.span_id)
            start, depth = max(start, parent.start_ns), depth + 1
            parent = mine.get(parent.parent_id or "")
        return start, depth, span.end_ns

    for span in sorted(mine.values(), key=order):
        hop = f"{span.service}: {span.name}"
        counts[hop] = counts.get(hop, 0) + 1
    return [hop if count == 1 else f"{hop} (x{count})" for hop, count in counts.items()]
