"""What dynamic settings were, who changed them and why, and the way back.

``platform.config`` is compacted; ``platform.config.history`` keeps every change. A writer puts two
things there before it changes a key: what stands and is about to be replaced, and its own change
(``infra.registry.config.publish_config``). So no change of ours that a process
followed is missing; a foreign writer's is there once one of ours has replaced it. A change that is
there may never have been made, by a writer that died in between; the outcome below tells such ones.
"""

from __future__ import annotations

import logging
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from infra.contracts.bus import Bus, Publisher, Record, catch_up
from infra.contracts.config_keys import ConfigState, InvalidSetting, parse
from infra.contracts.errors import FeedloomError
from infra.contracts.events.platform import ConfigChanged
from infra.contracts.reading import readable
from infra.registry.config import HISTORY, TOPIC, ConfigWatcher, publish_config

log = logging.getLogger(__name__)

READ_TIMEOUT_S = 60.0
Outcome = Literal["in force", "replaced", "overtaken", "not valid", "not made"]


class NoSuchRevision(FeedloomError):
    """A revision that cannot be gone back to. Says which can, or what would do."""


@dataclass(frozen=True, kw_only=True)
class PastChange:
    """A change and what became of it.

    ``overtaken``: another of the same revision stood. ``not valid``: the catalogue does not accept
    it, now. ``not made``: its writer came no further than the history.
    """

    event: ConfigChanged
    outcome: Outcome

    @property
    def stood(self) -> bool:
        """Whether it was what its revision is known for."""
        return self.outcome in ("in force", "replaced")


def fold_history(
    history: Sequence[ConfigChanged], current: Sequence[ConfigChanged]
) -> list[PastChange]:
    """Every change once, oldest first, a key's by revision.

    Args:
        history: the history topic's, in its order.
        current: those that are still on the topic itself, in its order.

    Of rivals with one revision the one that occurs last stood: it is last on the topic, and once
    that is compacted, it is the one that was put into the history again when it was replaced.
    """
    state = ConfigState()
    for event in current:
        try:
            state.apply(event)
        except InvalidSetting:
            continue
    last = {event: place for place, event in enumerate([*history, *current])}
    valid = {event: None for event in sorted(last, key=last.__getitem__) if _valid(event)}
    stood = {(event.key, event.revision): event for event in valid}
    found = [
        PastChange(event=event, outcome=_outcome(event, state, stood, valid)) for event in last
    ]
    found.sort(key=lambda past: (past.event.key, past.event.revision, last[past.event]))
    # Writers' clocks differ: within a key, time must not run against the revisions.
    moments: dict[ConfigChanged, int] = {}
    latest: dict[str, int] = {}
    for past in found:
        key, at_ms = past.event.key, past.event.changed_at_ms
        moments[past.event] = latest[key] = max(at_ms, latest.get(key, 0))
    return sorted(found, key=lambda past: moments[past.event])


def _valid(event: ConfigChanged) -> bool:
    try:
        parse(event.key, event.value)
    except InvalidSetting:
        return False
    return True


def _outcome(
    event: ConfigChanged,
    state: ConfigState,
    stood: Mapping[tuple[str, int], ConfigChanged],
    valid: Container[ConfigChanged],
) -> Outcome:
    if event.revision >= state.next_revision(event.key):
        return "not made"
    if event not in valid:
        return "not valid"
    if event == state.change(event.key):
        return "in force"
    return "replaced" if event == stood[event.key, event.revision] else "overtaken"


def read_history(bus: Bus, key: str | None = None) -> list[PastChange]:
    """The changes of one key, or of all. Raises FatalError when a topic cannot be read."""
    # In this order: what is replaced while we read has been put into the history.
    current = _events(bus, TOPIC, key)
    return fold_history(_events(bus, HISTORY, key), current)


def _events(bus: Bus, topic: str, key: str | None) -> list[ConfigChanged]:
    reader, records = bus.reader([topic]), list[Record]()
    try:
        catch_up(
            bus,
            reader,
            [topic],
            lambda poll_s: records.extend(reader.poll(poll_s)),
            what=topic,
            timeout_s=READ_TIMEOUT_S,
        )
    finally:
        reader.close()
    found = []
    for record in records:
        if record.value is None or (key is not None and record.key_text != key):
            continue
        event = readable(record, ConfigChanged, log)
        if event is not None and event.key == record.key_text:
            found.append(event)
    return found


def revision_to_restore(key: str, changes: Sequence[PastChange], to: int | None) -> PastChange:
    """The change of a key that is to be made again; without ``to`` the one before the newest.

    A newest one that is not valid was never in force: what it left in force comes before it.

    Raises NoSuchRevision.
    """
    stood = {past.event.revision: past for past in changes if past.stood}
    known = ", ".join(map(str, stood)) or "none"
    if to is not None:
        if to not in stood:
            raise NoSuchRevision(
                f"{key} has no valid revision {to} to go back to; the history has: {known}"
            )
        return stood[to]
    older = [revision for revision in stood if revision < newest_revision(changes)]
    if not older:
        raise NoSuchRevision(
            f"the history has no valid change of {key} before its newest: "
            f"`feedloom config unset {key}` brings back the default"
        )
    return stood[max(older)]


def newest_revision(changes: Sequence[PastChange]) -> int:
    """The highest of one key that came into being, valid or not; 0 if none did."""
    made = (past.event.revision for past in changes if past.outcome != "not made")
    return max(made, default=0)


def revert_config(
    bus: Bus,
    publisher: Publisher,
    watcher: ConfigWatcher,
    key: str,
    *,
    to: int | None,
    now_ms: int,
    actor: str = "",
    reason: str = "",
) -> ConfigChanged:
    """Publish the value of an older revision as a new one; see :func:`revision_to_restore`.

    Raises:
        NoSuchRevision: there is none to go back to; nothing is published.
        InvalidSetting: the catalogue accepts the key or that value no longer; nothing is published.
        ConfigOvertaken: somebody changed the key meanwhile.
        FatalError, DeliveryFailed: a topic cannot be read or written.
    """
    changes = read_history(bus, key)
    old = revision_to_restore(key, changes, to).event
    return publish_config(
        publisher,
        watcher,
        key,
        old.value,
        now_ms=now_ms,
        actor=actor,
        reason=f"revert to revision {old.revision}" + (f": {reason}" if reason else ""),
        after=newest_revision(changes),
    )
