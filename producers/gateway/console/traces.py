"""The newest traces of a span folder, and the waterfall of one.

Reads the end of each file only: a folder may hold gigabytes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from observability.spans import SpanRecord

FILES = 32
TAIL_BYTES = 2 * 1024 * 1024
LISTED = 200
MOST_SPANS = 500
REQUEST_ATTRIBUTE = "feedloom.request.id"

_DECODER = msgspec.json.Decoder(SpanRecord)


def recent_spans(directory: Path) -> list[SpanRecord]:
    """The spans at the ends of the ``FILES`` newest files; lines cut short are left out.

    Raises OSError when the folder cannot be read.
    """
    ages = [(path.stat().st_mtime, path) for path in directory.iterdir() if path.suffix == ".jsonl"]
    spans = []
    for _, path in sorted(ages, reverse=True)[:FILES]:
        for line in _tail(path):
            try:
                spans.append(_DECODER.decode(line))
            except (msgspec.DecodeError, UnicodeDecodeError):
                continue
    return spans


def _tail(path: Path) -> list[bytes]:
    with path.open("rb") as stream:
        size = stream.seek(0, 2)
        stream.seek(max(0, size - TAIL_BYTES))
        lines = stream.read(TAIL_BYTES).splitlines()
    return lines if size <= TAIL_BYTES else lines[1:]


def summaries(spans: Iterable[SpanRecord], *, limit: int = LISTED) -> list[dict[str, Any]]:
    """One entry a trace, that which began last first. Times in milliseconds."""
    traces: dict[str, list[SpanRecord]] = defaultdict(list)
    for span in spans:
        traces[span.trace_id].append(span)
    newest = sorted(traces.values(), key=lambda trace: min(one.start_ns for one in trace))
    return [_summary(trace) for trace in reversed(newest[-limit:])]


def _summary(trace: Sequence[SpanRecord]) -> dict[str, Any]:
    known = {span.span_id for span in trace}
    first = min(trace, key=lambda span: (span.parent_id in known, span.start_ns))
    start, end = min(one.start_ns for one in trace), max(one.end_ns for one in trace)
    requests = (span.attributes.get(REQUEST_ATTRIBUTE) for span in trace)
    return {
        "trace_id": first.trace_id,
        "name": first.name,
        "service": first.service,
        "services": sorted({span.service for span in trace}),
        "start_ms": start // 1_000_000,
        "duration_ms": (end - start) / 1e6,
        "spans": len(trace),
        "failed": any(span.status == "error" for span in trace),
        "request_id": next((str(one) for one in requests if one is not None), None),
    }


def waterfall(spans: Iterable[SpanRecord], trace_id: str) -> list[dict[str, Any]]:
    """The spans of a trace and those that link to it, each after its parent; empty if unknown.

    ``depth``: of nesting. ``offset_ms``: since the first of them began. ``linked``: of another
    trace. At most ``MOST_SPANS``.
    """
    mine = {span.span_id: span for span in spans if trace_id in (span.trace_id, *span.links)}
    if not any(span.trace_id == trace_id for span in mine.values()):
        return []
    children: dict[str | None, list[SpanRecord]] = defaultdict(list)
    for span in sorted(mine.values(), key=lambda one: (one.start_ns, one.end_ns)):
        parent = span.parent_id if span.parent_id in mine else None
        children[parent].append(span)
    start = min(span.start_ns for span in mine.values())
    rows: list[dict[str, Any]] = []
    pending = [(span, 0) for span in reversed(children[None])]
    while pending and len(rows) < MOST_SPANS:
        span, depth = pending.pop()
        rows.append(_row(span, depth, start, trace_id))
        # Taken out, so that a ring of parents ends.
        pending += [(child, depth + 1) for child in reversed(children.pop(span.span_id, []))]
    return rows


def _row(span: SpanRecord, depth: int, start_ns: int, trace_id: str) -> dict[str, Any]:
    return {
        "span_id": span.span_id,
        "service": span.service,
        "name": span.name,
        "kind": span.kind,
        "depth": depth,
        "offset_ms": (span.start_ns - start_ns) / 1e6,
        "duration_ms": max(0, span.end_ns - span.start_ns) / 1e6,
        "failed": span.status == "error",
        "linked": span.trace_id != trace_id,
        "attributes": span.attributes,
    }
