"""Dynamic settings as the console shows and changes them."""

from __future__ import annotations

from contextlib import closing
from typing import Annotated, Any

import msgspec
from pydantic import Field

from infra.contracts.bus import Bus
from infra.contracts.config_keys import (
    ANY_TENANT,
    CATALOGUE,
    DEFAULT_TENANT,
    ConfigState,
    as_json,
    setting,
)
from infra.contracts.events.platform import ConfigChanged
from infra.registry.config import ConfigWatcher, publish_config
from infra.registry.config_history import PastChange, read_history, revert_config
from producers.gateway.bodies import Body
from producers.gateway.console.rollout import MovedOn, Reason, Revision


class SettingBody(Body):
    """``value``: as ``feedloom config set`` takes it; ``null`` goes back to the default.

    ``revision``: the newest of the key that the person has seen.
    """

    value: Annotated[str, Field(min_length=1, max_length=10_000)]
    revision: Revision
    reason: Reason


class RevertBody(Body):
    """``to``: the revision whose value is to hold again; unset: the one before the newest."""

    revision: Revision
    reason: Reason
    to: Revision | None = None


def listed(state: ConfigState) -> list[dict[str, Any]]:
    """Every setting, those of single tenants and workers where they were set, by key."""
    keys = {key.replace(ANY_TENANT, DEFAULT_TENANT) for key in CATALOGUE}
    keys.update(change.key for change in state.changes())
    return [entry(state, key) for key in sorted(keys)]


def entry(state: ConfigState, key: str) -> dict[str, Any]:
    """One setting as it stands. Raises InvalidSetting when there is no such."""
    known, change, refused = setting(key), state.change(key), state.refusal(key)
    return {
        "key": key,
        "value": state.value(key),
        "default": known.default,
        "accepts": known.accepts,
        "choices": known.choices,
        "description": known.description,
        "revision": state.next_revision(key) - 1,
        "set": change is not None and change.value.strip() != "null",
        "change": None if change is None else _change(change),
        "refused": None if refused is None else {**_change(refused.event), "why": refused.why},
    }


def history(bus: Bus, key: str) -> list[dict[str, Any]]:
    """Every change of a key, the newest first. Raises InvalidSetting; FatalError when unread."""
    setting(key)
    return [_past(past) for past in reversed(read_history(bus, key))]


def _past(past: PastChange) -> dict[str, Any]:
    return {**_change(past.event), "outcome": past.outcome, "stood": past.stood}


def _change(event: ConfigChanged) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.to_builtins(event)
    return {name: found[name] for name in ("value", "revision", "changed_at_ms", "actor", "reason")}


def put(
    bus: Bus, key: str, asked: SettingBody, *, actor: str, now_ms: int, source: str
) -> dict[str, Any]:
    """Publish a value and wait until it stands; the entry as it then is.

    Raises InvalidSetting, MovedOn, and as :func:`infra.registry.config.publish_config`.
    """
    text = as_json(key, asked.value)
    with closing(ConfigWatcher(bus)) as watcher, closing(bus.publisher(client_id=source)) as out:
        _expect(watcher, key, asked.revision)
        publish_config(
            out,
            watcher,
            key,
            text,
            now_ms=now_ms,
            actor=actor,
            reason=asked.reason,
            after=asked.revision,
        )
        return entry(watcher.state, key)


def revert(
    bus: Bus, key: str, asked: RevertBody, *, actor: str, now_ms: int, source: str
) -> dict[str, Any]:
    """Publish an older value as a new revision; the entry as it then is.

    Raises MovedOn, and as :func:`infra.registry.config_history.revert_config`.
    """
    setting(key)
    with closing(ConfigWatcher(bus)) as watcher, closing(bus.publisher(client_id=source)) as out:
        _expect(watcher, key, asked.revision)
        revert_config(
            bus,
            out,
            watcher,
            key,
            to=asked.to,
            now_ms=now_ms,
            actor=actor,
            reason=asked.reason,
        )
        return entry(watcher.state, key)


def _expect(watcher: ConfigWatcher, key: str, revision: int) -> None:
    watcher.catch_up()
    newest = watcher.state.next_revision(key) - 1
    if newest != revision:
        standing = watcher.state.change(key)
        now = "at its default" if standing is None else f"{standing.value} by {standing.actor}"
        raise MovedOn(
            f"{key} has moved on since you looked: it is {now}, revision {newest}; "
            "look again, then decide"
        )
