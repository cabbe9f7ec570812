"""``feedloom config``."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import click

from infra.text import columns, one_line

if TYPE_CHECKING:
    from infra.contracts.bus import Bus, Publisher
    from infra.contracts.config_keys import ConfigState, Refusal
    from infra.contracts.events.platform import ConfigChanged
    from infra.registry.config import ConfigWatcher
    from infra.registry.config_history import PastChange

    Change = Callable[[Bus, Publisher, ConfigWatcher, int], ConfigChanged]

LATEST_MS = 253_402_300_799_000
"""The end of year 9999: no later moment has a date."""
MAX_TEXT = 200
"""Characters of what somebody wrote, in one line of output."""


@click.group()
def config() -> None:
    """Show and change dynamic settings; every worker follows within a second.

    A VALUE is JSON: 0.1, 32, true; text needs no quotes. Tenants' keys are tenants.NAME.weight and
    so on; tenants.default.* holds for tenants without their own. workers.ID.max_waiting and so on
    hold for one worker, before worker.*. A default shown here is the built-in one: a worker's own
    static settings stand in for it.
    """


@config.command(name="list")
def show() -> None:
    """List every setting: its value, whether it was set, and what it accepts."""
    from infra.contracts.config_keys import CATALOGUE, InvalidSetting, setting

    state = _state()
    changes = {change.key: change for change in state.changes() if change.value != "null"}
    refusals = {refusal.event.key: refusal for refusal in state.refusals()}
    for key in sorted({*CATALOGUE, *changes, *refusals}):
        change = changes.get(key)
        try:
            entry = setting(key)
        except InvalidSetting:
            click.echo(f"! {_line(key)}")
            click.echo(_refused(refusals[key]))
            continue
        value = entry.default if key in CATALOGUE and change is None else state.value(key)
        mark = "*" if change else " "
        click.echo(f"{mark} {key:36} {_text(value):>10}  {entry.description} ({entry.accepts})")
        if change is not None:
            by = f" by {change.actor}" if change.actor else ""
            why = f": {change.reason}" if change.reason else ""
            click.echo(_line(f"{'':50} set{by}, revision {change.revision}{why}"))
        if key in refusals:
            click.echo(_refused(refusals[key]))


def _refused(refusal: Refusal) -> str:
    revision, by = refusal.event.revision, refusal.event.actor or "somebody"
    text = f"revision {revision} by {by} is not valid and not in force: {refusal.why}"
    return f"{'':50} {_line(text)}"


@config.command()
@click.argument("key")
def get(key: str) -> None:
    """Print the value of KEY that is in force, as JSON; null means no limit."""
    from infra.contracts.config_keys import setting

    setting(key)
    click.echo(json.dumps(_state().value(key)))


# A negative number is a value out of range, not an option.
@config.command(name="set", context_settings={"ignore_unknown_options": True})
@click.argument("key")
@click.argument("value")
@click.option("--reason", default="", help="Why; kept with the change.")
def put(key: str, value: str, reason: str) -> None:
    """Set KEY to VALUE in every worker."""
    from infra.contracts.config_keys import as_json

    _publish(key, as_json(key, value), reason)


@config.command()
@click.argument("key")
@click.option("--reason", default="", help="Why; kept with the change.")
def unset(key: str, reason: str) -> None:
    """Bring KEY back to its default in every worker."""
    _publish(key, "null", reason)


@config.command()
@click.argument("key", required=False)
@click.option("--limit", default=20, show_default=True, type=click.IntRange(min=1), help="Newest.")
def history(key: str | None, limit: int) -> None:
    """Show the changes of KEY, or of every setting: who made them and why, the newest last.

    OUTCOME says what became of a change: in force; replaced; overtaken by another of the same
    revision; not valid, and therefore never in force; not made, because its writer came no further.
    """
    from infra.contracts.config_keys import setting
    from infra.kafka.bus import connect
    from infra.registry.config_history import read_history
    from infra.settings import load_settings

    if key is not None:
        setting(key)
    with connect(load_settings()) as bus:
        found = read_history(bus, key)
    if not found:
        click.echo("nothing was changed yet", err=True)
        return
    for line in _table(found[-limit:], keys=key is None):
        click.echo(line)


@config.command()
@click.argument("key")
@click.option("--to", metavar="REVISION", type=click.IntRange(min=1), help="Else the one before.")
@click.option("--reason", default="", help="Why; kept with the change.")
def revert(key: str, to: int | None, reason: str) -> None:
    """Give KEY the value that it had at a revision, as a new revision.

    Without --to it is the value before the newest change. A second revert undoes the first.
    """
    from infra.contracts.config_keys import setting
    from infra.registry.config_history import revert_config

    setting(key)
    _change(
        lambda bus, publisher, watcher, now_ms: revert_config(
            bus, publisher, watcher, key, to=to, now_ms=now_ms, actor=user(), reason=reason
        )
    )


def _table(changes: Sequence[PastChange], *, keys: bool) -> list[str]:
    """A header and a line a change, in columns; the reason last, as long as it is."""
    from infra.contracts.moments import utc

    named = ["KEY"] if keys else []
    rows = [("REVISION", "TIME", "ACTOR", *named, "VALUE", "OUTCOME", "REASON")]
    rows += [
        (
            str(past.event.revision),
            utc(min(past.event.changed_at_ms, LATEST_MS)),
            _line(past.event.actor or "-"),
            *([_line(past.event.key)] if keys else []),
            _line(past.event.value),
            past.outcome,
            _line(past.event.reason),
        )
        for past in changes
    ]
    return columns(rows)


def _publish(key: str, json_text: str, reason: str) -> None:
    from infra.contracts.config_keys import parse
    from infra.registry.config import publish_config

    parse(key, json_text)
    _change(
        lambda bus, publisher, watcher, now_ms: publish_config(
            publisher, watcher, key, json_text, now_ms=now_ms, actor=user(), reason=reason
        )
    )


def _change(change: Change) -> None:
    import time

    from infra.kafka.bus import connect
    from infra.registry.config import ConfigWatcher
    from infra.settings import load_settings

    with connect(load_settings()) as bus:
        watcher = ConfigWatcher(bus)
        publisher = bus.publisher(client_id="feedloom-config")
        try:
            event = change(bus, publisher, watcher, time.time_ns() // 1_000_000)
        finally:
            publisher.close()
            watcher.close()
    value = _text(watcher.state.value(event.key))
    default = " by default" if event.value == "null" else ""
    click.echo(f"{event.key} is {value}{default} (revision {event.revision})")


def user() -> str:
    """Who runs this command; empty where nobody knows."""
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):  # A container's user need not have a name.
        return ""


def _state() -> ConfigState:
    from infra.kafka.bus import connect
    from infra.registry.config import read_config
    from infra.settings import load_settings

    with connect(load_settings()) as bus:
        return read_config(bus)


def _line(text: str) -> str:
    return one_line(text, MAX_TEXT)


def _text(value: object) -> str:
    return "no limit" if value is None else json.dumps(value)
