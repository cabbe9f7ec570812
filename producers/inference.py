"""The GenAI client span of one request, from its submit to its result, and its durations."""

from __future__ import annotations

import threading
import time

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import SpanKind, Tracer

from infra.contracts.events.generation import GenerationRequest, GenerationResult
from observability.generation import (
    content_attributes,
    metric_attributes,
    request_attributes,
    response_attributes,
    span_name,
)
from observability.instruments import CLIENT_DURATION, CLIENT_FIRST_CHUNK
from observability.tracing import fail


class Inference:
    """Ends once, whichever of result, failure and neglect comes first. Safe across threads."""

    def __init__(
        self, tracer: Tracer, request: GenerationRequest, *, names: frozenset[str] | None
    ) -> None:
        self._request = request
        self._began = time.perf_counter()
        self._lock = threading.Lock()
        self._chunked = self._ended = False
        self._span = tracer.start_span(
            span_name(request),
            kind=SpanKind.CLIENT,
            attributes=request_attributes(request, names=names),
        )

    @property
    def context(self) -> Context:
        """For spans within this one."""
        return trace.set_span_in_context(self._span)

    @property
    def trace_id(self) -> str:
        """32 hex digits; zeros where no spans are recorded."""
        return f"{self._span.get_span_context().trace_id:032x}"

    def first_chunk(self) -> None:
        """A chunk is there; only the first counts. It may come after the result."""
        with self._lock:
            if self._chunked:
                return
            self._chunked, ended = True, self._ended
        waited_s = time.perf_counter() - self._began
        if not ended:
            self._span.set_attribute("gen_ai.response.time_to_first_chunk", waited_s)
        CLIENT_FIRST_CHUNK.record(waited_s, metric_attributes(self._request), self.context)

    def end(
        self, result: GenerationResult | None = None, error: BaseException | None = None
    ) -> None:
        """Without either: nobody waits for it any more."""
        with self._lock:
            if self._ended:
                return
            self._ended = True
        failure = None if error is None else type(error).__qualname__
        version = None
        if result is not None:
            version = result.model_versions[-1] if result.model_versions else None
            self._span.set_attributes(response_attributes(result))
            self._span.set_attributes(content_attributes(self._request, result.text))
            failure = None if result.error is None else result.error.code
        attributes = metric_attributes(self._request, version)
        if failure is not None:
            fail(self._span, failure, failure if error is None else str(error))
            attributes["error.type"] = failure
        if result is not None or error is not None:
            CLIENT_DURATION.record(time.perf_counter() - self._began, attributes, self.context)
        self._span.end()
