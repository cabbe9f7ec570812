"""Spans of a file of OTLP/JSON.

Source: opentelemetry-proto ``docs/specification.md`` ("JSON Protobuf Encoding"): ids in hex, 64-bit
numbers as strings, enumerations as numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from infra.contracts.errors import ConfigurationError
from infra.terminal.span_sources import SpanList, counted
from observability.spans import SpanLink, SpanRecord, Value

_KINDS = ("internal", "internal", "server", "client", "producer", "consumer")
_STATUSES = ("unset", "ok", "error")


def read_otlp_json(path: Path) -> SpanList:
    """The spans of a file of OTLP/JSON: one document, or one a line as the collector's file
    exporter writes them. Raises ConfigurationError.
    """
    try:
        text = path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error}") from error
    try:
        try:
            documents = [msgspec.json.decode(text, type=_Export)]
        except msgspec.DecodeError:
            documents = msgspec.json.Decoder(_Export).decode_lines(text)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} is not OTLP/JSON: {error}") from error
    spans = [
        _record(span, _values(group.resource.attributes))
        for document in documents
        for group in document.resourceSpans
        for scope in group.scopeSpans
        for span in scope.spans
    ]
    return SpanList(spans, where=f"{path} ({counted(len(spans), 'span')})")


class _Pair(msgspec.Struct):
    key: str
    value: dict[str, Any] = {}


class _Resource(msgspec.Struct):
    attributes: list[_Pair] = []


class _Event(msgspec.Struct):
    name: str = ""
    attributes: list[_Pair] = []


class _Link(msgspec.Struct):
    traceId: str  # noqa: N815 - names of this and the following are OTLP's
    spanId: str = ""  # noqa: N815
    attributes: list[_Pair] = []


class _Status(msgspec.Struct):
    code: int | str = 0
    message: str = ""


class _Span(msgspec.Struct):
    traceId: str  # noqa: N815
    spanId: str  # noqa: N815
    name: str = ""
    parentSpanId: str = ""  # noqa: N815
    kind: int | str = 0
    startTimeUnixNano: int | str = 0  # noqa: N815
    endTimeUnixNano: int | str = 0  # noqa: N815
    attributes: list[_Pair] = []
    links: list[_Link] = []
    events: list[_Event] = []
    status: _Status = msgspec.field(default_factory=_Status)


class _Scope(msgspec.Struct):
    spans: list[_Span] = []


class _Group(msgspec.Struct):
    resource: _Resource = msgspec.field(default_factory=_Resource)
    scopeSpans: list[_Scope] = []  # noqa: N815


class _Export(msgspec.Struct):
    resourceSpans: list[_Group] = []  # noqa: N815


def _record(span: _Span, resource: dict[str, Value]) -> SpanRecord:
    links = tuple(
        SpanLink(
            trace_id=one.traceId.lower(),
            span_id=one.spanId.lower(),
            attributes=_values(one.attributes),
        )
        for one in span.links
    )
    return SpanRecord(
        service=str(resource.get("service.name", "unknown")),
        name=span.name,
        kind=_named(span.kind, _KINDS, "SPAN_KIND_"),
        trace_id=span.traceId.lower(),
        span_id=span.spanId.lower(),
        parent_id=span.parentSpanId.lower() or None,
        start_ns=int(span.startTimeUnixNano),
        end_ns=int(span.endTimeUnixNano),
        status=_named(span.status.code, _STATUSES, "STATUS_CODE_"),
        attributes=_values(span.attributes),
        links=tuple(one.trace_id for one in links),
        linked=links,
        message=span.status.message or _raised(span.events),
        instance=str(resource.get("service.instance.id", "")),
    )


def _named(code: int | str, names: Sequence[str], prefix: str) -> str:
    """An enumeration's value, which OTLP/JSON writes as a number and others as its name."""
    if isinstance(code, str):
        return code.removeprefix(prefix).lower()
    return names[code] if code < len(names) else names[0]


def _raised(events: Iterable[_Event]) -> str:
    raised = [_values(event.attributes) for event in events if event.name == "exception"]
    last = raised[-1] if raised else {}
    return ": ".join(
        str(last[name]) for name in ("exception.type", "exception.message") if name in last
    )


_VALUES: dict[str, Callable[[Any], Value]] = {
    "stringValue": str,
    "intValue": int,
    "doubleValue": float,
    "boolValue": bool,
}


def _values(pairs: Iterable[_Pair]) -> dict[str, Value]:
    found: dict[str, Value] = {}
    for pair in pairs:
        for form, value in pair.value.items():
            found[pair.key] = _VALUES.get(form, str)(value)
    return found
