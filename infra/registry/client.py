"""Publish to and watch the registry topics."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from uuid import uuid4

from opentelemetry import trace
from opentelemetry.trace import Link, SpanKind

from infra.contracts import catalogue, codec
from infra.contracts.bus import Bus, Publisher, RecordPosition, catch_up
from infra.contracts.codec import Headers
from infra.contracts.errors import RetryableError
from infra.contracts.events.base import Event
from infra.contracts.events.model import ModelVersionPublished, RolloutChanged
from infra.contracts.reading import either
from infra.registry.state import RegistryState
from observability.messaging import LINK, links_to, send_attributes
from observability.propagation import carried, inject

log = logging.getLogger(__name__)
tracer = trace.get_tracer("feedloom.registry")

ACKNOWLEDGE_TIMEOUT_S = 60.0
SOURCE = "feedloom/registry"
TOPICS = (catalogue.REGISTRY.name, catalogue.ROLLOUTS.name)


def publish_version(publisher: Publisher, event: ModelVersionPublished) -> None:
    """Publish a version and wait until the broker has it. Raises the delivery's error."""
    _publish(publisher, catalogue.REGISTRY.name, f"{event.model}/{event.version}", event)


def publish_rollout(
    publisher: Publisher, event: RolloutChanged, *, links: Sequence[Link] = ()
) -> None:
    """Publish a rollout and wait until the broker has it. Raises the delivery's error."""
    _publish(publisher, catalogue.ROLLOUTS.name, event.model, event, links)


def _publish(
    publisher: Publisher,
    topic: str,
    key: str,
    event: ModelVersionPublished | RolloutChanged,
    links: Sequence[Link] = (),
) -> None:
    with tracer.start_as_current_span(
        f"send {topic}",
        kind=SpanKind.PRODUCER,
        attributes=send_attributes(topic, key=key) | named(event),
        links=links,
    ):
        send(publisher, topic, key, event).result(ACKNOWLEDGE_TIMEOUT_S)


def named(event: ModelVersionPublished | RolloutChanged) -> dict[str, str]:
    """What a span says of the model that it is about."""
    if isinstance(event, ModelVersionPublished):
        return {"feedloom.model": event.model, "feedloom.version": event.version}
    attributes = {
        "feedloom.model": event.model,
        "feedloom.version": event.stable,
        "feedloom.rollout.state": event.state,
    }
    if event.candidate is not None:
        attributes["feedloom.version.candidate"] = event.candidate
    return attributes


def send(
    publisher: Publisher,
    topic: str,
    key: str,
    event: Event,
    *,
    source: str = SOURCE,
    event_id: str | None = None,
) -> Future[RecordPosition]:
    """Publish an event within the present span; what is returned ends when the broker has it."""
    headers = codec.event_headers(event, event_id=event_id or str(uuid4()), source=source)
    return publisher.publish(
        topic, key=key.encode(), value=codec.encode(event), headers=inject(headers)
    )


class RolloutOvertaken(RetryableError):
    """Somebody else changed the same rollout at the same moment. Look at it before another try."""


def change_rollout(
    publisher: Publisher,
    watcher: RegistryWatcher,
    change: Callable[[RegistryState], RolloutChanged],
) -> RolloutChanged:
    """Publish what ``change`` makes of the rollout as it stands, and wait until it is read back.

    Kafka knows no compare-and-set. Of two writers of one revision the later stands, because it is
    the one that compaction keeps; it reads the earlier before its own, so that at least one of two
    always learns of the other.

    Raises:
        IllegalTransition: of ``change``; nothing is published.
        RolloutOvertaken: another writer made a change of the same revision; says whose stands.
        FatalError, DeliveryFailed: the topics cannot be read or written.
    """
    watcher.catch_up()
    event = change(watcher.state)
    rivals: list[RolloutChanged] = []

    def look(seen: ModelVersionPublished | RolloutChanged) -> None:
        if isinstance(seen, RolloutChanged) and seen.model == event.model and seen != event:
            rivals.append(seen)

    watcher.callbacks.append(look)
    try:
        links = watcher.links(event.model, event.candidate or event.stable)
        publish_rollout(publisher, event, links=links)
        watcher.catch_up()
    finally:
        watcher.callbacks.remove(look)
    standing = watcher.state.rollout(event.model)
    if standing != event:
        assert standing is not None
        raise RolloutOvertaken(
            f"{event.model} was changed at the same moment by {standing.actor or 'somebody'}, to "
            f"{standing.stable} (revision {standing.revision}), and that stands"
        )
    if rivals:
        other = rivals[-1]
        raise RolloutOvertaken(
            f"{event.model} was changed at the same moment by {other.actor or 'somebody'}, to "
            f"{other.stable}; this change, to {event.stable}, came later and stands"
        )
    return event


class RegistryWatcher:
    """Reads both registry topics from the beginning, without a group: every process sees all."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._reader = bus.reader(TOPICS)
        self.state = RegistryState()
        self.callbacks: list[Callable[[ModelVersionPublished | RolloutChanged], None]] = []
        """Called with each event that changed the state, in the thread that polls."""
        self._origins: dict[tuple[str, str], Headers] = {}
        self._rollouts: dict[str, Headers] = {}

    def links(self, model: str, *versions: str) -> list[Link]:
        """To the spans that published these versions, each in the trace of its training run, and
        to the one that published the model's rollout as it stands.
        """
        published = [self._origins.get((model, version)) for version in versions]
        return [
            *links_to(*published, **{LINK: "publication"}),
            *links_to(self._rollouts.get(model), **{LINK: "rollout"}),
        ]

    def _note_origin(self, event: ModelVersionPublished | RolloutChanged, headers: Headers) -> None:
        origin = carried(headers)
        if isinstance(event, ModelVersionPublished):
            self._origins[event.model, event.version] = origin
        else:
            self._rollouts[event.model] = origin

    def poll(self, timeout_s: float) -> list[ModelVersionPublished | RolloutChanged]:
        """Take in what came; returns the events that changed the state.

        A record that cannot be read, or redefines a version, is logged and passed over: one bad
        writer must not stop every worker.
        """
        applied = []
        for record in self._reader.poll(timeout_s):
            if record.value is None:
                continue
            event = either(record, ModelVersionPublished, RolloutChanged, log)
            if event is not None and self.state.apply(event):
                self._note_origin(event, record.headers)
                applied.append(event)
                for callback in self.callbacks:
                    callback(event)
            elif isinstance(event, ModelVersionPublished):
                known = self.state.version(event.model, event.version)
                if known != event:
                    log.warning(
                        "%s redefines %s@%s; a published version never changes",
                        record.where,
                        event.model,
                        event.version,
                    )
        return applied

    def catch_up(self, timeout_s: float = 30) -> None:
        """Poll up to the ends that the topics have now. Raises FatalError after ``timeout_s``."""
        what = "the registry topics"
        catch_up(self._bus, self._reader, TOPICS, self.poll, what=what, timeout_s=timeout_s)

    def close(self) -> None:
        """Let go of the connection."""
        self._reader.close()


def read_registry(bus: Bus) -> RegistryState:
    """The registry as it stands now. Raises FatalError when the topics cannot be read."""
    watcher = RegistryWatcher(bus)
    try:
        watcher.catch_up()
    finally:
        watcher.close()
    return watcher.state
