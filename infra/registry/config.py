"""Publish and watch dynamic configuration (``platform.config``).

Of a key compaction keeps the newest change only. What a writer is about to replace goes to
``platform.config.history`` first, and its own change with it (``infra.registry.config_history``).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Literal
from uuid import uuid4

from opentelemetry import trace
from opentelemetry.trace import SpanKind

from infra.contracts import catalogue, codec
from infra.contracts.bus import Bus, Publisher, Record, catch_up
from infra.contracts.config_keys import ConfigState, InvalidSetting, Value, parse, setting
from infra.contracts.errors import ContractError, RetryableError
from infra.contracts.events.platform import ConfigChanged
from infra.registry.client import ACKNOWLEDGE_TIMEOUT_S, send
from observability.instruments import CONFIG_REFUSED
from observability.messaging import send_attributes

log = logging.getLogger(__name__)
tracer = trace.get_tracer("feedloom.registry")

TOPIC = catalogue.CONFIG.name
HISTORY = catalogue.CONFIG_HISTORY.name


class ConfigOvertaken(RetryableError):
    """Somebody else changed the same key at the same moment. Look at it before another try."""


class ConfigWatcher:
    """Reads the topic from the beginning, without a group: every process sees every change.

    ``defaults`` (by key) stand in for the catalogue's: a worker gives its static settings.
    """

    def __init__(self, bus: Bus, defaults: Mapping[str, Value] | None = None) -> None:
        self.state = ConfigState(defaults)
        self._bus = bus
        self._reader = bus.reader([TOPIC])

    def poll(self, timeout_s: float) -> list[str]:
        """Take in what came; returns the keys that changed, in order.

        A record that cannot be read, or whose value the catalogue does not accept, is logged,
        counted and passed over, and the value before it stays: one bad writer must not stop every
        worker.
        """
        changed: list[str] = []
        for record in self._reader.poll(timeout_s):
            try:
                key = self._apply(record)
            except InvalidSetting as error:
                _count_refused(record, "invalid")
                log.warning("setting refused on %s: %s", record.where, error)
            except ContractError as error:
                _count_refused(record, "unreadable")
                log.warning("unreadable record on %s: %s", record.where, error)
            else:
                if key is not None:
                    changed.append(key)
        return changed

    def _apply(self, record: Record) -> str | None:
        written_as = record.key_text
        if record.value is None:
            return written_as if self.state.forget(written_as) else None
        event = codec.decode(record.value, ConfigChanged)
        if event.key != written_as:
            # Compaction goes by the record's key: it would keep this beside the real one.
            raise InvalidSetting(f"a change of {event.key!r} under the key {written_as!r}")
        return event.key if self.state.apply(event) else None

    def catch_up(self, timeout_s: float = 30) -> None:
        """Poll up to the end that the topic has now. Raises FatalError after ``timeout_s``."""
        catch_up(self._bus, self._reader, [TOPIC], self.poll, what=TOPIC, timeout_s=timeout_s)

    def close(self) -> None:
        """Let go of the connection."""
        self._reader.close()


def _count_refused(record: Record, reason: Literal["invalid", "unreadable"]) -> None:
    """By the catalogue's keys, in which nobody's name occurs: there must not be too many."""
    try:
        key = setting(record.key_text).key
    except InvalidSetting:
        key = "unknown"
    CONFIG_REFUSED.add(1, {"feedloom.setting": key, "feedloom.reason": reason})


def read_config(bus: Bus) -> ConfigState:
    """The settings as they are in force. Raises FatalError when the topic cannot be read."""
    watcher = ConfigWatcher(bus)
    try:
        watcher.catch_up()
    finally:
        watcher.close()
    return watcher.state


def publish_config(
    publisher: Publisher,
    watcher: ConfigWatcher,
    key: str,
    json_text: str,
    *,
    now_ms: int,
    actor: str = "",
    reason: str = "",
    after: int | None = None,
) -> ConfigChanged:
    """Publish one change, one revision above the newest, and wait until it stands.

    When this returns, the change is on the topic and every reader prefers it to all before. It is
    in the history before it is on the topic, and so is what it replaces, whoever wrote that.
    ``after``: the newest revision that the caller has seen; there must be none above it.

    Raises:
        InvalidSetting: of the key or the value; nothing is published.
        ConfigOvertaken: another writer was faster, and its change stands.
        FatalError, DeliveryFailed: a topic cannot be read or written.
    """
    parse(key, json_text)
    watcher.catch_up()
    revision = watcher.state.next_revision(key)
    if after is not None and revision != after + 1:
        raise _overtaken(watcher.state, key)
    event = ConfigChanged(
        key=key,
        value=json_text,
        revision=revision,
        changed_at_ms=now_ms,
        actor=actor,
        reason=reason,
    )
    standing, refusal = watcher.state.change(key), watcher.state.refusal(key)
    replaced = [standing, refusal.event if refusal else None]
    event_id = str(uuid4())
    with tracer.start_as_current_span(
        f"send {TOPIC}",
        kind=SpanKind.PRODUCER,
        attributes=send_attributes(TOPIC, key=key) | {"feedloom.setting": key},
    ):
        kept = [send(publisher, HISTORY, key, old) for old in replaced if old is not None]
        kept.append(send(publisher, HISTORY, key, event, event_id=event_id))
        for future in kept:
            future.result(ACKNOWLEDGE_TIMEOUT_S)
        send(publisher, TOPIC, key, event, event_id=event_id).result(ACKNOWLEDGE_TIMEOUT_S)
    watcher.catch_up()
    if watcher.state.change(key) != event:
        raise _overtaken(watcher.state, key)
    return event


def _overtaken(state: ConfigState, key: str) -> ConfigOvertaken:
    standing = state.change(key)
    return ConfigOvertaken(
        f"{key} was changed by somebody else at the same moment, and is now "
        f"{standing.value if standing else 'at its default'}: set it again if that is wrong"
    )
