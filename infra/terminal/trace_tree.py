"""A request's trace as a tree, and the traces that span links tie it to, each as its own. Pure.

Links are followed one way at a time: from the request on to what points at it (feedback, the
training run that read it, ...) and back to what it points at. Turning round in between would lead
to every other request that the same training run has read.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from infra.terminal.span_sources import SpanSource
from observability.spans import SpanLink, SpanRecord

MOST_SPANS = 200
MOST_LINKED = 8
MOST_HOPS = 6
LINK_ATTRIBUTE = "feedloom.link"
"""Of a span link: what the span that it leads to is to the one that has it."""

_ROLES = (
    # What an operator calls it, by how the name of a span begins.
    ("commit of offsets", ("commit",)),
    ("training run", ("train ",)),
    ("publication", ("publish model.registry", "send model.registry")),
    ("rollout change", ("publish model.rollouts", "send model.rollouts")),
    ("rollout decision", ("decide ", "publish model.decisions", "send model.decisions")),
    ("version switch", ("switch ", "load ")),
    ("shadow comparison", ("shadow ",)),
    ("feedback", ("send feedback.", "publish feedback.", "process feedback.")),
    ("request", ("send generation.requests", "process generation.requests", "POST ")),
)


@dataclass(frozen=True, kw_only=True)
class Node:
    """One span in its place. ``depth`` counts from 0; ``guide`` draws the branch to it."""

    span: SpanRecord
    depth: int
    guide: str


@dataclass(frozen=True, kw_only=True)
class Section:
    """One trace. ``hop``: links between it and the request; ``left_out``: spans not shown.

    ``relation`` says how it is tied to the section before its own hop; empty for the request's.
    ``link`` is the span link itself, with its attributes, where there is one.
    """

    trace_id: str
    role: str
    relation: str
    hop: int
    nodes: tuple[Node, ...]
    left_out: int = 0
    link: SpanLink | None = None

    @property
    def start_ns(self) -> int:
        """When its first span began."""
        return min(node.span.start_ns for node in self.nodes)

    @property
    def end_ns(self) -> int:
        """When its last span ended."""
        return max(node.span.end_ns for node in self.nodes)


@dataclass(frozen=True, kw_only=True)
class Story:
    """The request's own trace first, then the others in the order in which they were reached.

    ``left_out``: linked traces that were not shown, by the trace that they are tied to.
    ``request_id``: of the request, where one was asked for.
    """

    sections: tuple[Section, ...]
    left_out: dict[str, int]
    request_id: str = ""


@dataclass(frozen=True)
class _Tie:
    trace_id: str
    relation: str
    onward: bool
    link: SpanLink | None


def of_request(
    source: SpanSource, request_id: str, *, most_linked: int = MOST_LINKED
) -> Story | None:
    """What is known of a request; ``None`` if no span carries its id.

    Its own trace is the one in which it was first seen. Others with its id that no link leads to
    follow at the end.
    """
    found = sorted(source.of_request(request_id), key=lambda span: span.start_ns)
    if not found:
        return None
    others = [
        _Tie(one, f"carries {request_id} too", True, None)
        for one in dict.fromkeys(span.trace_id for span in found[1:])
    ]
    story = _story(source, found[0].trace_id, others, most_linked)
    return None if story is None else replace(story, request_id=request_id)


def of_trace(source: SpanSource, trace_id: str, *, most_linked: int = MOST_LINKED) -> Story | None:
    """A trace and what it is linked with; ``None`` if it is unknown."""
    return _story(source, trace_id, (), most_linked)


def _story(
    source: SpanSource, trace_id: str, others: Sequence[_Tie], most_linked: int
) -> Story | None:
    first = _section(source, _Tie(trace_id, "", True, None), 0)
    if first is None:
        return None
    sections, seen = [first], {trace_id}
    left_out: dict[str, int] = {}
    pending = [(trace_id, 1, both) for both in (True, False)]
    while pending:
        at, hop, onward = pending.pop(0)
        ties = [
            tie
            for tie in (_onward(source, at) if onward else _back(source, at))
            if tie.trace_id not in seen
        ]
        for tie in ties[:most_linked]:
            seen.add(tie.trace_id)
            section = _section(source, tie, hop)
            if section is None:
                continue
            sections.append(section)
            if hop < MOST_HOPS:
                pending.append((tie.trace_id, hop + 1, onward))
        if len(ties) > most_linked:
            left_out[at] = left_out.get(at, 0) + len(ties) - most_linked
    for tie in others:
        if tie.trace_id not in seen and (section := _section(source, tie, 1)) is not None:
            seen.add(tie.trace_id)
            sections.append(section)
    return Story(sections=tuple(sections), left_out=left_out)


def _onward(source: SpanSource, trace_id: str) -> list[_Tie]:
    """The traces that point at this one, the earliest first."""
    spans = sorted(source.pointing_at(trace_id), key=lambda span: span.start_ns)
    ties: dict[str, _Tie] = {}
    for span in spans:
        link = next(one for one in span.pointers if one.trace_id == trace_id)
        relation = f"linked by {span.name} of {span.service}{_as(link)}"
        ties.setdefault(span.trace_id, _Tie(span.trace_id, relation, True, link))
    return list(ties.values())


def _back(source: SpanSource, trace_id: str) -> list[_Tie]:
    """The traces that this one points at."""
    ties: dict[str, _Tie] = {}
    for span in sorted(source.of_trace(trace_id), key=lambda span: span.start_ns):
        for link in span.pointers:
            if link.trace_id != trace_id:
                relation = f"{span.name} of {span.service} links to it{_as(link)}"
                ties.setdefault(link.trace_id, _Tie(link.trace_id, relation, False, link))
    return list(ties.values())


def _as(link: SpanLink) -> str:
    said = link.attributes.get(LINK_ATTRIBUTE)
    return "" if said is None else f", as its {said}"


def _section(source: SpanSource, tie: _Tie, hop: int) -> Section | None:
    nodes = tuple(tree(source.of_trace(tie.trace_id)))
    if not nodes:
        return None
    return Section(
        trace_id=tie.trace_id,
        role=role(node.span.name for node in nodes),
        relation=tie.relation,
        hop=hop,
        nodes=nodes[:MOST_SPANS],
        left_out=max(0, len(nodes) - MOST_SPANS),
        link=tie.link,
    )


def role(names: Iterable[str]) -> str:
    """What a trace is about, by the first of its spans' names that tells."""
    for name in names:
        for said, beginnings in _ROLES:
            if name.startswith(beginnings):
                return said
    return "trace"


def tree(spans: Iterable[SpanRecord]) -> Iterator[Node]:
    """Each span after its parent, siblings in order of start. A span given twice counts once.

    A span whose parent is not there is a root: its parent's process kept no spans.
    """
    known = {span.span_id: span for span in spans}
    children: dict[str | None, list[SpanRecord]] = defaultdict(list)
    for span in sorted(known.values(), key=lambda one: (one.start_ns, one.end_ns, one.span_id)):
        parent = span.parent_id if span.parent_id in known else None
        children[parent].append(span)
    # A ring of parents has no root; one of it is made one.
    reached = set(_below(children, None))
    for span in sorted(known.values(), key=lambda one: one.start_ns):
        if span.span_id not in reached:
            children[None].append(span)
            children[span.parent_id].remove(span)
            reached |= set(_below(children, span.span_id)) | {span.span_id}
    pending = [(span, 0, "", "") for span in reversed(children[None])]
    while pending:
        span, depth, guide, indent = pending.pop()
        yield Node(span=span, depth=depth, guide=guide)
        below = children.get(span.span_id, [])
        for place, child in reversed(list(enumerate(below))):
            last = place == len(below) - 1
            branch, further = ("└─ ", "   ") if last else ("├─ ", "│  ")
            pending.append((child, depth + 1, indent + branch, indent + further))


def _below(children: dict[str | None, list[SpanRecord]], parent: str | None) -> Iterator[str]:
    pending = list(children.get(parent, ()))
    while pending:
        span = pending.pop()
        yield span.span_id
        pending += children.get(span.span_id, ())
