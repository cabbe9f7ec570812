"""W3C trace context in Kafka headers. One injector: a second would write a second traceparent."""

from __future__ import annotations

from collections.abc import Mapping

from opentelemetry import propagate
from opentelemetry.context import Context

from infra.contracts.codec import Headers

_FIELDS = frozenset({"traceparent", "tracestate", "baggage"})


def inject(headers: Headers, context: Context | None = None) -> list[tuple[str, bytes]]:
    """``headers`` with the given (or the current) trace context in place of any older one."""
    carrier: dict[str, str] = {}
    propagate.inject(carrier, context=context)
    kept = [pair for pair in headers if pair[0].lower() not in _FIELDS]
    return kept + [(name, value.encode()) for name, value in carrier.items()]


def trace_headers() -> dict[str, str] | None:
    """The current trace context as an HTTP caller would send it; ``None`` outside of any span."""
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return carrier or None


def forward(headers: Headers, source: Headers) -> list[tuple[str, bytes]]:
    """``headers`` with the trace context that ``source`` carries, as it is: for where no span is
    recorded in between.
    """
    return [*headers, *carried(source)]


def carried(headers: Headers) -> list[tuple[str, bytes]]:
    """The trace context among ``headers``, to be kept or handed on."""
    return [pair for pair in headers if pair[0].lower() in _FIELDS]


def extract(headers: Headers) -> Context:
    """The trace context a record carries; an empty one if it carries none."""
    carrier: Mapping[str, str] = {
        name.lower(): value.decode("utf-8", "replace")
        for name, value in headers
        if name.lower() in _FIELDS
    }
    return propagate.extract(carrier, context=Context())
