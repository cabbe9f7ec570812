"""Attributes and spans of Kafka operations, as the messaging conventions name them.

Source: open-telemetry/semantic-conventions ``docs/messaging/kafka.md`` and ``messaging-spans.md``.
A record's send, its processing and the commit of its offset are one span each. Chunks carry their
context and have no span of their own: there are as many as tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized
from contextlib import AbstractContextManager
from typing import Any

from opentelemetry import trace
from opentelemetry.trace import Link, Span, SpanKind, Tracer
from opentelemetry.util.types import AttributeValue

from infra.contracts.bus import Record
from infra.contracts.codec import Headers
from observability.instruments import (
    DESTINATION,
    ERROR_TYPE,
    GROUP,
    MESSAGES_CONSUMED,
    MESSAGES_SENT,
    MESSAGING_OPERATION,
    MESSAGING_OPERATION_DURATION,
    SYSTEM,
)
from observability.propagation import extract
from observability.tracing import NO_SPAN, is_recording, span

Attributes = Mapping[str, AttributeValue]

REQUEST_ID = "feedloom.request.id"
LINK = "feedloom.link"
"""On a span link: what it leads to: request, feedback, heldout, shards, publication, rollout."""
MAXIMUM_LINKS = 128
"""As many as the SDK keeps of a span (``OTEL_SPAN_LINK_COUNT_LIMIT``)."""


def send_attributes(topic: str, *, key: str | None = None) -> dict[str, AttributeValue]:
    """Of one record that is sent."""
    attributes: dict[str, AttributeValue] = {
        "messaging.system": "kafka",
        "messaging.operation.name": "send",
        "messaging.operation.type": "send",
        "messaging.destination.name": topic,
    }
    if key is not None:
        attributes["messaging.kafka.message.key"] = key
    return attributes


def process_attributes(record: Record, *, group: str | None = None) -> dict[str, AttributeValue]:
    """Of one record that is worked on."""
    attributes: dict[str, AttributeValue] = {
        "messaging.system": "kafka",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": record.topic,
        "messaging.destination.partition.id": str(record.partition),
        "messaging.kafka.offset": record.offset,
    }
    if group is not None:
        attributes["messaging.consumer.group.name"] = group
    if record.key is not None:
        attributes["messaging.kafka.message.key"] = record.key_text
    if record.value is None:
        attributes["messaging.kafka.message.tombstone"] = True
    return attributes


def receive_attributes(topic: str, count: int) -> dict[str, AttributeValue]:
    """Of so many records that were taken together."""
    return {
        "messaging.system": "kafka",
        "messaging.operation.name": "poll",
        "messaging.operation.type": "receive",
        "messaging.destination.name": topic,
        "messaging.batch.message_count": count,
    }


def measured(
    operation: str, topic: str | None = None, *, group: str | None = None
) -> dict[str, str]:
    """Attributes of the ``messaging.*`` metrics."""
    attributes = {SYSTEM: "kafka", MESSAGING_OPERATION: operation}
    if topic is not None:
        attributes[DESTINATION] = topic
    return attributes if group is None else attributes | {GROUP: group}


def count_polled(
    found: Mapping[Any, Sized], took_s: float, *, prefix: str, group: str | None
) -> None:
    """What a poll found, records by partition, and how long it took. ``prefix``: of the topics."""
    poll = measured("poll", group=group)
    MESSAGING_OPERATION_DURATION.record(took_s, poll)
    for partition, records in found.items():
        topic = partition.topic.removeprefix(prefix)
        MESSAGES_CONSUMED.add(len(records), {**poll, DESTINATION: topic})


def count_sent(topic: str, took_s: float, *, error: BaseException | None = None) -> None:
    """A record that the broker has, or did not take. ``topic``: without its prefix."""
    attributes = measured("send", topic)
    if error is not None:
        attributes[ERROR_TYPE] = type(error).__qualname__
    MESSAGES_SENT.add(1, attributes)
    MESSAGING_OPERATION_DURATION.record(took_s, attributes)


def sending(
    tracer: Tracer,
    topic: str,
    *,
    key: str | None = None,
    attributes: Attributes | None = None,
    links: Sequence[Link] = (),
) -> AbstractContextManager[Span]:
    """``send TOPIC``, current in the ``with`` block: what is injected there is its context."""
    if not is_recording():
        return NO_SPAN
    return span(
        tracer,
        f"send {topic}",
        kind=SpanKind.PRODUCER,
        attributes={**send_attributes(topic, key=key), **(attributes or {})},
        links=links,
    )


def processing(
    tracer: Tracer,
    record: Record,
    *,
    group: str | None = None,
    attributes: Attributes | None = None,
    links: Sequence[Link] = (),
    start_ns: int | None = None,
) -> AbstractContextManager[Span]:
    """``process TOPIC``, a child of the record's send. ``start_ns``: epoch, if it began before."""
    if not is_recording():
        return NO_SPAN
    return span(
        tracer,
        f"process {record.topic}",
        kind=SpanKind.CONSUMER,
        attributes={**process_attributes(record, group=group), **(attributes or {})},
        parent=record.headers,
        links=links,
        start_ns=start_ns,
    )


def committing(
    tracer: Tracer, topics: Sequence[str], records: Sequence[Headers], *, group: str | None = None
) -> AbstractContextManager[Span]:
    """``commit TOPIC`` of offsets whose records led to ``records``, to each of which it links.

    A commit is of many traces, so it has one of its own.
    """
    if not is_recording():
        return NO_SPAN
    known = sorted(set(topics))
    attributes: dict[str, AttributeValue] = {
        "messaging.system": "kafka",
        "messaging.operation.name": "commit",
        "messaging.operation.type": "settle",
        "messaging.batch.message_count": len(records),
    }
    if len(known) == 1:
        attributes["messaging.destination.name"] = known[0]
    if group is not None:
        attributes["messaging.consumer.group.name"] = group
    return span(
        tracer,
        f"commit {known[0]}" if len(known) == 1 else "commit",
        kind=SpanKind.CLIENT,
        attributes=attributes,
        links=links_to(*records[:MAXIMUM_LINKS]),
        parent=(),
    )


def links_to(*headers: Headers | None, **attributes: AttributeValue) -> list[Link]:
    """A link to the span that each of ``headers`` carries; none for those that carry none."""
    found = []
    for one in headers:
        context = trace.get_current_span(extract(one or ())).get_span_context()
        if context.is_valid:
            found.append(Link(context, attributes))
    return found
