"""Spans at a Jaeger query service, over the HTTP API that its own user interface uses.

Source: jaegertracing.io, "APIs" (``/api/services``, ``/api/traces``); the answer's shape is that of
``jaeger/internal/uimodel``. Times there are microseconds; a span link is a reference of type
FOLLOWS_FROM, without its attributes. Jaeger finds no span by what it points at: the newest
``SCANNED`` traces of each service are looked through instead.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cached_property
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlencode, urlsplit
from urllib.request import urlopen

import msgspec

from infra.contracts.errors import ConfigurationError
from infra.terminal.span_sources import REQUEST_ATTRIBUTE, carries, points_at
from observability.spans import SpanLink, SpanRecord, Value

TIMEOUT_S = 10.0
FOUND = 20
SCANNED = 200


class _Reference(msgspec.Struct):
    refType: str  # noqa: N815 - names of this and the following are Jaeger's
    traceID: str  # noqa: N815
    spanID: str  # noqa: N815


class _Tag(msgspec.Struct):
    key: str
    value: Any = None


class _Log(msgspec.Struct):
    fields: list[_Tag] = []


class _Process(msgspec.Struct):
    serviceName: str = "unknown"  # noqa: N815
    tags: list[_Tag] = []


class _Span(msgspec.Struct):
    traceID: str  # noqa: N815
    spanID: str  # noqa: N815
    operationName: str = ""  # noqa: N815
    references: list[_Reference] = []
    startTime: int = 0  # noqa: N815
    duration: int = 0
    tags: list[_Tag] = []
    logs: list[_Log] | None = None
    processID: str = ""  # noqa: N815


class _Trace(msgspec.Struct):
    spans: list[_Span] = []
    processes: dict[str, _Process] = {}


class _Traces(msgspec.Struct):
    data: list[_Trace] | None = None


class _Services(msgspec.Struct):
    data: list[str] | None = None


class JaegerSource:
    """See ``SpanSource``. ``url``: of the query service, such as ``http://127.0.0.1:16686``."""

    def __init__(self, url: str) -> None:
        if urlsplit(url).scheme not in ("http", "https"):
            raise ConfigurationError(f"--jaeger {url}: give a URL such as http://127.0.0.1:16686")
        self._url = url.rstrip("/")

    @property
    def where(self) -> str:
        """The service, and whose spans it has."""
        return f"Jaeger at {self._url} (services: {', '.join(self._services) or 'none'})"

    def of_request(self, request_id: str) -> list[SpanRecord]:
        """See the Protocol."""
        tags = json.dumps({REQUEST_ATTRIBUTE: request_id})
        spans = self._search(tags=tags, limit=FOUND)
        return [one for one in spans if carries(one, request_id)]

    def of_trace(self, trace_id: str) -> list[SpanRecord]:
        """See the Protocol."""
        found = self._get(f"/api/traces/{quote(trace_id, safe='')}", missing=b'{"data": []}')
        return _records(_decoded(found, _Traces).data or [])

    def pointing_at(self, trace_id: str) -> list[SpanRecord]:
        """See the Protocol; of the newest traces only."""
        return [one for one in self._newest if points_at(one, trace_id)]

    @cached_property
    def _services(self) -> list[str]:
        return sorted(_decoded(self._get("/api/services"), _Services).data or [])

    @cached_property
    def _newest(self) -> list[SpanRecord]:
        return self._search(limit=SCANNED)

    def _search(self, **query: str | int) -> list[SpanRecord]:
        found: list[SpanRecord] = []
        for service in self._services:
            asked = urlencode({"service": service, "lookback": "custom", **query})
            traces = _decoded(self._get(f"/api/traces?{asked}"), _Traces)
            found += _records(traces.data or [])
        return found

    def _get(self, path: str, *, missing: bytes | None = None) -> bytes:
        """``missing``: what a 404 stands for. Raises ConfigurationError."""
        try:
            with urlopen(self._url + path, timeout=TIMEOUT_S) as answer:  # nosec B310 # checked
                body: bytes = answer.read()
        except HTTPError as error:
            error.close()
            if error.code == 404 and missing is not None:
                return missing
            raise ConfigurationError(
                f"Jaeger at {self._url} answers {path.split('?')[0]} with {error.code} "
                f"{error.reason}: is it the query service (port 16686)?"
            ) from error
        except (URLError, OSError) as error:
            reason = getattr(error, "reason", error)
            raise ConfigurationError(f"no Jaeger answers at {self._url} ({reason})") from error
        return body


def _decoded(body: bytes, kind: type[Any]) -> Any:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"that is no answer of Jaeger's query service: {error}") from error


def _records(traces: Iterable[_Trace]) -> list[SpanRecord]:
    return [
        _record(span, trace.processes.get(span.processID, _Process()))
        for trace in traces
        for span in trace.spans
    ]


def _record(span: _Span, process: _Process) -> SpanRecord:
    tags = {tag.key: _plain(tag.value) for tag in span.tags}
    kind = str(tags.pop("span.kind", "internal"))
    status = str(tags.pop("otel.status_code", "unset")).lower()
    failed = tags.pop("error", False) in (True, "true")
    said = str(tags.pop("otel.status_description", ""))
    parent = next((one for one in span.references if one.refType == "CHILD_OF"), None)
    links = tuple(
        SpanLink(trace_id=_trace_id(one.traceID), span_id=one.spanID)
        for one in span.references
        if one is not parent
    )
    return SpanRecord(
        service=process.serviceName,
        name=span.operationName,
        kind=kind,
        trace_id=_trace_id(span.traceID),
        span_id=span.spanID,
        parent_id=None if parent is None else parent.spanID,
        start_ns=1000 * span.startTime,
        end_ns=1000 * (span.startTime + span.duration),
        status="error" if failed else status,
        attributes=tags,
        links=tuple(one.trace_id for one in links),
        linked=links,
        message=said or _raised(span.logs or []),
        instance=next(
            (str(tag.value) for tag in process.tags if tag.key == "service.instance.id"), ""
        ),
    )


def _trace_id(text: str) -> str:
    """Jaeger leaves leading zeros out."""
    return text.rjust(32, "0")


def _raised(logs: Iterable[_Log]) -> str:
    for log in logs:
        fields = {field.key: str(field.value) for field in log.fields}
        if fields.get("event") == "exception":
            named = (fields.get(f"exception.{one}") for one in ("type", "message"))
            return ": ".join(one for one in named if one)
    return ""


def _plain(value: Any) -> Value:
    return value if isinstance(value, str | int | float | bool) else str(value)
