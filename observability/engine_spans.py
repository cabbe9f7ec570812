"""vLLM's spans by the conventions' names, with the parts of its work as spans of their own.

vLLM writes one span for a request, ``llm_request``, under names of an older draft, and gives the
time in its queue, of prefill and of decode as attributes. Here these become spans below it:
``feedloom.engine.queue``, ``feedloom.engine.prefill`` and ``feedloom.engine.decode``.
"""

from __future__ import annotations

import random

from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.trace import SpanContext, SpanKind
from opentelemetry.util.types import AttributeValue

REQUEST_SPAN = "llm_request"
FIRST = "feedloom.engine.time_to_first_token"
_PARTS = (
    ("feedloom.engine.queue", "gen_ai.latency.time_in_queue"),
    ("feedloom.engine.prefill", "gen_ai.latency.time_in_model_prefill"),
    ("feedloom.engine.decode", "gen_ai.latency.time_in_model_decode"),
)
_NAMES = {
    "gen_ai.usage.prompt_tokens": "gen_ai.usage.input_tokens",
    "gen_ai.usage.completion_tokens": "gen_ai.usage.output_tokens",
    "gen_ai.request.n": "gen_ai.request.choice.count",
    "gen_ai.request.id": "feedloom.engine.request.id",
    "gen_ai.latency.time_to_first_token": FIRST,
    "code.function": "code.function.name",
    "code.namespace": "feedloom.engine.module",
    "code.filepath": "code.file.path",
    "code.lineno": "feedloom.engine.line",
}
"""Old to new. Every other ``gen_ai.latency.*`` is what a span's own times say."""


class EngineSpans(SpanProcessor):
    """Hands spans on to another processor, vLLM's as they should be."""

    def __init__(self, following: SpanProcessor) -> None:
        self._following = following

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Handed on."""
        self._following.on_start(span, parent_context)

    def on_end(self, span: ReadableSpan) -> None:
        """One span of vLLM's becomes four."""
        scope = span.instrumentation_scope
        if scope is None or not scope.name.startswith("vllm"):
            self._following.on_end(span)
            return
        parts = _parts(span) if span.name == REQUEST_SPAN else []
        for one in (_renamed(span), *parts):
            self._following.on_end(one)

    def shutdown(self) -> None:
        """Handed on."""
        self._following.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Handed on."""
        return self._following.force_flush(timeout_millis)


def _renamed(span: ReadableSpan) -> ReadableSpan:
    attributes: dict[str, AttributeValue] = {}
    for name, value in (span.attributes or {}).items():
        new = _NAMES.get(name, name)
        if not new.startswith("gen_ai.latency."):
            attributes[new] = value
    return _like(span, span.name, span.get_span_context(), span.parent, attributes)


def _parts(span: ReadableSpan) -> list[ReadableSpan]:
    whole, known = span.get_span_context(), span.attributes or {}
    assert whole is not None
    assert span.start_time is not None
    at, found = span.start_time, []
    for name, source in _PARTS:
        seconds = known.get(source)
        if not isinstance(seconds, int | float) or seconds < 0:
            continue
        context = SpanContext(
            whole.trace_id,
            random.getrandbits(64) or 1,  # nosec B311 # as OpenTelemetry's own ids
            is_remote=False,
            trace_flags=whole.trace_flags,
            trace_state=whole.trace_state,
        )
        end = at + int(1e9 * seconds)
        found.append(_like(span, name, context, whole, {}, SpanKind.INTERNAL, at, end))
        at = end
    return found


def _like(
    span: ReadableSpan,
    name: str,
    context: SpanContext | None,
    parent: SpanContext | None,
    attributes: dict[str, AttributeValue],
    kind: SpanKind = SpanKind.INTERNAL,
    start: int | None = None,
    end: int | None = None,
) -> ReadableSpan:
    return ReadableSpan(
        name=name,
        context=context,
        parent=parent,
        resource=span.resource,
        attributes=attributes,
        kind=kind,
        status=span.status,
        instrumentation_scope=span.instrumentation_scope,
        start_time=span.start_time if start is None else start,
        end_time=span.end_time if end is None else end,
    )
