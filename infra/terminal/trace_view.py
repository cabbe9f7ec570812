"""A request's trace in the terminal: a line a span, its attributes beneath, a heading a trace."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from infra.terminal.span_sources import REQUEST_ATTRIBUTE, counted
from infra.terminal.trace_tree import LINK_ATTRIBUTE, Node, Section, Story
from observability.spans import SpanLink, SpanRecord, Value

BAR = 24
LEAST_BAR = 6
"""A terminal that leaves less room has no bars."""
NAME_SHARE = 0.5
"""Of the width, at most, for the tree of names."""
SERVICE_COLOURS = ("cyan", "green", "yellow", "magenta", "blue", "bright_red", "bright_cyan")

_PLACE = (
    "messaging.destination.name",
    "messaging.destination.partition.id",
    "messaging.kafka.offset",
)
_TOKENS = ("gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens")
_PLAIN = {
    # Attribute: what it is called here; the order is that of the line.
    "feedloom.request.id": "request",
    "gen_ai.response.model": "model",
    "gen_ai.response.finish_reasons": "finish",
    "feedloom.resumed_tokens": "resumed",
    "http.response.status_code": "status",
    "messaging.consumer.group.name": "group",
    "error.type": "error",
}
_SAID_ALREADY = {
    *_PLACE,
    *_TOKENS,
    *_PLAIN,
    "messaging.system",
    "messaging.operation.name",
    "messaging.operation.type",
}


def show(story: Story, console: Console, *, every_attribute: bool = False) -> None:
    """Print all sections; offsets and bars are each trace's own."""
    first = story.sections[0]
    colours = _colours(story)
    if story.request_id:
        console.print(Text(f"request {story.request_id}"), soft_wrap=True)
    for number, section in enumerate(story.sections):
        if number:
            console.print()
        for line in _heading(section, first):
            console.print(line, no_wrap=True, overflow="ellipsis", crop=True)
        for node, line in _section(section, colours, console.width):
            console.print(line, no_wrap=True, overflow="ellipsis", crop=True)
            for told in _told(node, story.request_id, every_attribute):
                console.print(Padding(told, (0, 0, 0, 4 + len(node.guide)), expand=False))
        if section.left_out:
            console.print(Text(f"  … and {section.left_out} more spans", style="dim"))
        if more := story.left_out.get(section.trace_id):
            plural = "" if more == 1 else "s"
            console.print(
                Text(f"  … and {more} more linked trace{plural} (--most-linked)", style="dim")
            )


def as_json(story: Story) -> dict[str, Any]:
    """The sections as plain data. Offsets and durations in milliseconds, starts in epoch ones."""
    return {
        "traces": [
            {
                "trace_id": section.trace_id,
                "role": section.role,
                "relation": section.relation,
                "link": None if section.link is None else _link(section.link),
                "hop": section.hop,
                "start_ms": section.start_ns // 1_000_000,
                "duration_ms": (section.end_ns - section.start_ns) / 1e6,
                "spans_left_out": section.left_out,
                "linked_left_out": story.left_out.get(section.trace_id, 0),
                "spans": [_row(node, section.start_ns) for node in section.nodes],
            }
            for section in story.sections
        ]
    }


def _link(link: SpanLink) -> dict[str, Any]:
    return {
        "trace_id": link.trace_id,
        "span_id": link.span_id or None,
        "attributes": link.attributes,
    }


def _row(node: Node, start_ns: int) -> dict[str, Any]:
    span = node.span
    return {
        "span_id": span.span_id,
        "parent_id": span.parent_id,
        "depth": node.depth,
        "service": span.service,
        "instance": span.instance,
        "name": span.name,
        "kind": span.kind,
        "offset_ms": (span.start_ns - start_ns) / 1e6,
        "duration_ms": max(0, span.end_ns - span.start_ns) / 1e6,
        "status": span.status,
        "message": span.message,
        "attributes": span.attributes,
        "links": [_link(one) for one in span.pointers],
    }


def _colours(story: Story) -> dict[str, str]:
    services = dict.fromkeys(
        node.span.service for section in story.sections for node in section.nodes
    )
    return {
        service: SERVICE_COLOURS[number % len(SERVICE_COLOURS)]
        for number, service in enumerate(services)
    }


def _heading(section: Section, first: Section) -> Iterator[Text]:
    title = Text(f"{section.role}  ", style="bold")
    title.append(f"trace {section.trace_id}", style="dim")
    title.append(f"  {counted(len(section.nodes) + section.left_out, 'span')}", style="dim")
    title.append(f", {duration(section.end_ns - section.start_ns)}", style="dim")
    yield title
    if section is first:
        return
    gap = section.start_ns - first.start_ns
    when = f"{duration(abs(gap))} {'after' if gap >= 0 else 'before'} the first began"
    yield Text(f"  {section.relation}; {when}", style="italic")
    further = {} if section.link is None else dict(section.link.attributes)
    further.pop(LINK_ATTRIBUTE, None)
    if further:
        yield Text(f"  link: {_pairs(further)}", style="dim")


def _section(
    section: Section, colours: Mapping[str, str], width: int
) -> Iterator[tuple[Node, Text]]:
    widest = max(cell_len(_named(node)) for node in section.nodes)
    names = min(widest, int(NAME_SHARE * width))
    services = max(cell_len(node.span.service) for node in section.nodes)
    whole = max(1, section.end_ns - section.start_ns)
    for node in section.nodes:
        span = node.span
        failed = span.status == "error"
        line = Text("  ")
        name = Text(_named(node))
        name.stylize("dim", 0, len(node.guide))
        if failed:
            name.stylize("red", len(node.guide))
        name.truncate(names, overflow="ellipsis", pad=True)
        line.append_text(name)
        line.append(f"  {span.service:<{services}}", style=colours[span.service])
        line.append(f"  {span.kind:<8}", style="dim")
        line.append(f"  {'+' + duration(span.start_ns - section.start_ns):>8}")
        line.append(f"  {duration(max(0, span.end_ns - span.start_ns)):>8}")
        line.append(
            f"  {'' if span.status == 'unset' else span.status:<5}",
            style="red" if failed else "dim",
        )
        bar = min(BAR, width - line.cell_len - 3)
        if bar >= LEAST_BAR:
            drawn = _bar(span, section.start_ns, whole, bar)
            line.append(f" {drawn}", style=colours[span.service])
        yield node, line


def _told(node: Node, request_id: str, every_attribute: bool) -> Iterator[Text]:
    span = node.span
    attributes = dict(span.attributes)
    if not every_attribute and attributes.get(REQUEST_ATTRIBUTE) == request_id:
        del attributes[REQUEST_ATTRIBUTE]  # said at the top
    told = _pairs(attributes) if every_attribute else key_attributes(attributes)
    for text, style in ((told, "dim"), (span.message, "red")):
        if text:
            yield Text(text, style=style)


def _named(node: Node) -> str:
    return node.guide + node.span.name


def _bar(span: SpanRecord, start_ns: int, whole_ns: int, width: int) -> str:
    """Where in the trace a span lies; at least one mark, and never beyond the end."""
    begin = min(width - 1, int(width * (span.start_ns - start_ns) / whole_ns))
    end = min(width, max(begin + 1, round(width * (span.end_ns - start_ns) / whole_ns)))
    return "▕" + " " * begin + "█" * (end - begin) + " " * (width - end) + "▏"


def key_attributes(attributes: Mapping[str, Value]) -> str:
    """What of a span's attributes an operator looks for, in few words.

    Those of the project (``feedloom.*``) are all among them.
    """
    said: list[str] = []
    if (topic := attributes.get(_PLACE[0])) is not None:
        place = str(topic)
        if (partition := attributes.get(_PLACE[1])) is not None:
            place += f"/{partition}"
        if (offset := attributes.get(_PLACE[2])) is not None:
            place += f" at {offset}"
        said.append(place)
    counts = [attributes.get(name) for name in _TOKENS]
    if counts != [None, None]:
        came, went = (0 if count is None else count for count in counts)
        said.append(f"{came} tokens in, {went} out")
    said += [f"{word} {attributes[name]}" for name, word in _PLAIN.items() if name in attributes]
    own = {
        name.removeprefix("feedloom."): value
        for name, value in attributes.items()
        if name.startswith("feedloom.") and name not in _SAID_ALREADY
    }
    return " · ".join([*said, *([_pairs(own)] if own else [])])


def _pairs(attributes: Mapping[str, Value]) -> str:
    return " · ".join(f"{name} {value}" for name, value in attributes.items())


def duration(ns: int) -> str:
    """A length of time in three digits and the unit that suits it."""
    seconds = ns / 1e9
    if not ns:
        return "0"
    if seconds >= 90:
        return f"{seconds / 60:.1f} min"
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            value = seconds / size
            return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f} {unit}"
    return f"{1e6 * seconds:.0f} µs"
