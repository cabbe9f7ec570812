"""``feedloom config``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from infra.registry.config import ConfigWatcher


@click.group()
def config() -> None:
    """Show and change dynamic settings; every worker follows within a second.

    A VALUE is JSON: 0.1, 32, true. Tenants' keys are tenants.NAME.weight and so on;
    tenants.default.* holds for tenants without their own. A default shown here is the built-in
    one: a worker's own static settings stand in for it.
    """


@config.command(name="list")
def show() -> None:
    """List every setting: its value, whether it was set, and what it accepts."""
    from infra.contracts.config_keys import CATALOGUE, setting

    with _watcher() as watcher:
        state = watcher.state
    changes = {change.key: change for change in state.changes() if change.value != "null"}
    for key in sorted({*CATALOGUE, *changes}):
        entry, change = setting(key), changes.get(key)
        value = entry.default if key in CATALOGUE and change is None else state.value(key)
        mark = "*" if change else " "
        click.echo(f"{mark} {key:36} {_text(value):>10}  {entry.description} ({entry.accepts})")
        if change is not None:
            by = f" by {change.actor}" if change.actor else ""
            why = f": {change.reason}" if change.reason else ""
            click.echo(f"{'':50} set{by}, revision {change.revision}{why}")


@config.command()
@click.argument("key")
def get(key: str) -> None:
    """Print the value of KEY that is in force, as JSON; null means no limit."""
    from infra.contracts.config_keys import setting

    setting(key)
    with _watcher() as watcher:
        click.echo(json.dumps(watcher.state.value(key)))


# A negative number is a value out of range, not an option.
@config.command(name="set", context_settings={"ignore_unknown_options": True})
@click.argument("key")
@click.argument("value")
@click.option("--reason", default="", help="Why; kept with the change.")
def put(key: str, value: str, reason: str) -> None:
    """Set KEY to VALUE (JSON) in every worker."""
    click.echo(_publish(key, value, reason))


@config.command()
@click.argument("key")
@click.option("--reason", default="", help="Why; kept with the change.")
def unset(key: str, reason: str) -> None:
    """Bring KEY back to its default in every worker."""
    click.echo(_publish(key, "null", reason))


def _publish(key: str, value: str, reason: str) -> str:
    import time

    from infra.contracts.config_keys import parse
    from infra.kafka.bus import connect
    from infra.registry.config import ConfigWatcher, publish_config
    from infra.settings import load_settings

    parse(key, value)
    with connect(load_settings()) as bus:
        watcher = ConfigWatcher(bus)
        publisher = bus.publisher(client_id="feedloom-config")
        try:
            event = publish_config(
                publisher,
                watcher,
                key,
                value,
                now_ms=time.time_ns() // 1_000_000,
                actor=user(),
                reason=reason,
            )
        finally:
            publisher.close()
            watcher.close()
    default = " by default" if event.value == "null" else ""
    return f"{key} is {_text(watcher.state.value(key))}{default} (revision {event.revision})"


def user() -> str:
    """Who runs this command; empty where nobody knows."""
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):  # A container's user need not have a name.
        return ""


@contextmanager
def _watcher() -> Iterator[ConfigWatcher]:
    from infra.kafka.bus import connect
    from infra.registry.config import ConfigWatcher
    from infra.settings import load_settings

    with connect(load_settings()) as bus:
        watcher = ConfigWatcher(bus)
        try:
            watcher.catch_up()
            yield watcher
        finally:
            watcher.close()


def _text(value: object) -> str:
    return "no limit" if value is None else json.dumps(value)
