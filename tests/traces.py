"""What a request's trace must be made of, asserted on spans as a collector has them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from tests.telemetry import Link, Span

ADMITTED = (
    "send generation.requests",
    "process generation.requests",
    "feedloom.admission",
    "send generation.results",
    "process generation.results",
)
ENGINE = (
    "llm_request",
    "feedloom.engine.queue",
    "feedloom.engine.prefill",
    "feedloom.engine.decode",
)


class Traces:
    """Spans by trace and by id, and who links to whom."""

    def __init__(self, spans: Iterable[Span]) -> None:
        self.spans = {span.span_id: span for span in spans}
        self.by_trace: dict[str, list[Span]] = defaultdict(list)
        self.linked_from: dict[str, list[Span]] = defaultdict(list)
        for span in self.spans.values():
            self.by_trace[span.trace_id].append(span)
            for link in span.links:
                self.linked_from[link.span_id].append(span)

    def gaps(self, trace_id: str, expected: Iterable[str] = (*ADMITTED, *ENGINE)) -> list[str]:
        """What is wrong with a request's trace: spans it lacks, parents that nobody sent."""
        spans = self.by_trace.get(trace_id, [])
        names = [span.name for span in spans]
        known = {span.span_id for span in spans}
        roots = [span.name for span in spans if span.parent_id is None]
        return [
            *(f"no span {name!r}" for name in expected if name not in names),
            *(
                f"the parent of {span.name!r} is missing"
                for span in spans
                if span.parent_id is not None and span.parent_id not in known
            ),
            *([] if len(roots) == 1 else [f"{len(roots)} roots: {roots}"]),
        ]

    def named(self, name: str, trace_id: str | None = None) -> list[Span]:
        """All spans of a name, of one trace or of all."""
        among = self.spans.values() if trace_id is None else self.by_trace.get(trace_id, [])
        return [span for span in among if span.name == name]

    def reached(self, span: Span) -> set[str]:
        """Names of all spans that can be walked to: parents, children and links, both ways."""
        seen: set[str] = set()
        left = [span]
        while left:
            now = left.pop()
            if now.span_id in seen:
                continue
            seen.add(now.span_id)
            left += self.by_trace[now.trace_id]
            left += self.linked_from[now.span_id]
            left += [self.spans[link.span_id] for link in now.links if link.span_id in self.spans]
        return {self.spans[span_id].name for span_id in seen}


def links_of(spans: Iterable[Span]) -> list[Link]:
    """Of all of them."""
    return [link for span in spans for link in span.links]
