"""Publish and read what was decided of canaries (``model.decisions``)."""

from __future__ import annotations

import logging
from collections import deque

from opentelemetry import trace
from opentelemetry.trace import SpanKind

from infra.contracts import catalogue
from infra.contracts.bus import Bus, Publisher, catch_up
from infra.contracts.events.model import RolloutDecided
from infra.contracts.reading import readable
from infra.registry.client import ACKNOWLEDGE_TIMEOUT_S, send
from infra.rollouts.policy import Decision, differs
from observability.messaging import send_attributes

log = logging.getLogger(__name__)
tracer = trace.get_tracer("feedloom.rollouts")

TOPIC = catalogue.DECISIONS.name
SOURCE = "feedloom/rollouts"
HOLD_EVERY_MS = 60_000
"""A hold is published no sooner than this after the decision before it."""
KEPT = 1_000


class DecisionsWatcher:
    """Reads the topic from the beginning, without a group: every controller sees all."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._reader = bus.reader([TOPIC])
        self._last: dict[str, RolloutDecided] = {}
        self.recent: deque[RolloutDecided] = deque(maxlen=KEPT)
        """The newest ones of all models, in the topic's order."""

    def last(self, model: str, experiment: str) -> RolloutDecided | None:
        """The last decision on a model, if it was on this experiment."""
        found = self._last.get(model)
        return found if found is not None and found.experiment == experiment else None

    def poll(self, timeout_s: float) -> None:
        """Take in what came. A record that cannot be read is logged and passed over."""
        for record in self._reader.poll(timeout_s):
            event = readable(record, RolloutDecided, log)
            if event is not None:
                self.recent.append(event)
                self._last[event.model] = event

    def catch_up(self, timeout_s: float = 30) -> None:
        """Poll up to the end that the topic has now. Raises FatalError after ``timeout_s``."""
        catch_up(self._bus, self._reader, [TOPIC], self.poll, what=TOPIC, timeout_s=timeout_s)

    def close(self) -> None:
        """Let go of the connection."""
        self._reader.close()


def read_decisions(bus: Bus, model: str | None = None) -> list[RolloutDecided]:
    """The newest decisions on a model, or on all, the newest last.

    Raises FatalError when the topic cannot be read.
    """
    watcher = DecisionsWatcher(bus)
    try:
        watcher.catch_up()
    finally:
        watcher.close()
    return [one for one in watcher.recent if model in (None, one.model)]


def publish_decision(publisher: Publisher, event: RolloutDecided) -> None:
    """Publish a decision and wait until the broker has it. Raises the delivery's error."""
    with tracer.start_as_current_span(
        f"send {TOPIC}",
        kind=SpanKind.PRODUCER,
        attributes=send_attributes(TOPIC, key=event.model) | {"feedloom.model": event.model},
    ):
        send(publisher, TOPIC, event.model, event, source=SOURCE).result(ACKNOWLEDGE_TIMEOUT_S)


def worth_publishing(decision: Decision, last: RolloutDecided | None, *, now_ms: int) -> bool:
    """Whether a decision that is not acted on says something new, and, if it is a hold, not too
    soon after the ``last`` one of the experiment: figures near a limit pass it to and fro.
    """
    if not differs(decision, last):
        return False
    return decision.verdict != "hold" or hold_is_due(last, now_ms=now_ms)


def hold_is_due(last: RolloutDecided | None, *, now_ms: int) -> bool:
    """Whether a hold may be published again."""
    return last is None or now_ms - last.decided_at_ms >= HOLD_EVERY_MS
