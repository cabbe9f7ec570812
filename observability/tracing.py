"""Spans where somebody collects them, and nothing at all where nobody does.

Even the no-op tracer of the API costs some 20 µs a span; on a worker's path every request has
several. Whether spans are recorded is decided once, when the process's telemetry is set up.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType

from opentelemetry.trace import INVALID_SPAN, Link, Span, SpanKind, StatusCode, Tracer
from opentelemetry.util.types import AttributeValue

from infra.contracts.codec import Headers
from observability.propagation import extract

_recording = False


def start_recording() -> None:
    """Record from now on. Called by the process's telemetry set-up."""
    global _recording
    _recording = True


def is_recording() -> bool:
    """Whether the telemetry set-up of this process installed a tracer provider."""
    return _recording


class _NoSpan(AbstractContextManager[Span]):
    def __enter__(self) -> Span:
        return INVALID_SPAN

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        return None


NO_SPAN = _NoSpan()
"""For where nothing is recorded."""


def span(
    tracer: Tracer,
    name: str,
    *,
    kind: SpanKind = SpanKind.INTERNAL,
    attributes: Mapping[str, AttributeValue] | None = None,
    parent: Headers | None = None,
    links: Sequence[Link] = (),
    start_ns: int | None = None,
) -> AbstractContextManager[Span]:
    """The current span for a ``with`` block. ``parent``: headers that carry the trace context;
    empty ones make it a root. ``start_ns``: epoch nanoseconds, now by default.

    Without recording it is the invalid span, and the current context stays as it is.
    """
    if not _recording:
        return NO_SPAN
    return _recorded(
        tracer.start_as_current_span(
            name,
            context=None if parent is None else extract(parent),
            kind=kind,
            attributes=attributes,
            links=links,
            start_time=start_ns,
        )
    )


@contextmanager
def _recorded(started: AbstractContextManager[Span]) -> Iterator[Span]:
    """The SDK notes an exception and the status, but no ``error.type``."""
    with started as recording:
        try:
            yield recording
        except Exception as error:
            recording.set_attribute("error.type", type(error).__qualname__)
            raise


def fail(span: Span, kind: str, message: str) -> None:
    """What went wrong where no exception leaves the span: ``error.type``, and the status."""
    span.set_attribute("error.type", kind)
    span.set_status(StatusCode.ERROR, message)


def past(
    tracer: Tracer,
    name: str,
    start_ns: int,
    *,
    attributes: Mapping[str, AttributeValue] | None = None,
) -> None:
    """A child of the current span that began at ``start_ns`` and ends now."""
    if _recording:
        tracer.start_span(name, attributes=attributes, start_time=start_ns).end()
