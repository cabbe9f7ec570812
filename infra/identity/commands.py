"""``feedloom keys``."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import click

from infra.contracts.events.platform import Role
from infra.text import columns, one_line

if TYPE_CHECKING:
    from infra.contracts.bus import Publisher
    from infra.contracts.events.platform import ApiKeyChanged
    from infra.identity.key_topic import KeysWatcher, MadeKey

T = TypeVar("T")

MAX_TEXT = 200
"""Characters of what somebody wrote, in one line of output."""
MAX_DAYS = 36_500

_UNITS_MS = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 7 * 86_400_000}


def duration(text: str) -> int:
    """Milliseconds of ``90d``, ``24h``, ``30m``, ``10s``, ``2w``; a hundred years at most."""
    found = re.fullmatch("([0-9]{1,12})([smhdw])", text)
    length_ms = int(found[1]) * _UNITS_MS[found[2]] if found else -1
    if not 0 <= length_ms <= MAX_DAYS * _UNITS_MS["d"]:
        raise click.BadParameter(
            f"{text!r} is no length of time: a whole number and one of s, m, h, d, w, such as 90d; "
            f"at most {MAX_DAYS}d"
        )
    return length_ms


@click.group()
def keys() -> None:
    """Create, list, rotate and revoke API keys; every gateway follows within a second.

    A key is shown once, when it is made: only a hash of it is kept. It is named by its id, the part
    before the second underscore.
    """


@keys.command()
@click.option("--tenant", required=True, help="Whose requests and limits they are.")
@click.option("--name", required=True, help="What it is for; a rotated key keeps it.")
@click.option(
    "--role",
    "roles",
    multiple=True,
    required=True,
    type=click.Choice(get_args(Role)),
    help="What it may do; may be given again.",
)
@click.option("--model", "models", multiple=True, help="Only this model; may be given again.")
@click.option("--expires", type=duration, help="After so long, such as 90d; else never.")
@click.option("--reason", default="", help="Why; kept with the key.")
def create(
    tenant: str,
    name: str,
    roles: tuple[Role, ...],
    models: tuple[str, ...],
    expires: int | None,
    reason: str,
) -> None:
    """Make a key and print it, alone, on standard output."""
    from infra.identity.key_topic import create_key

    def make(publisher: Publisher, watcher: KeysWatcher, now_ms: int, actor: str) -> MadeKey:
        return create_key(
            publisher,
            watcher,
            tenant=tenant,
            name=name,
            roles=roles,
            models=models,
            now_ms=now_ms,
            expires_at_ms=None if expires is None else now_ms + expires,
            actor=actor,
            reason=reason,
        )

    _print_once(_change(make))


@keys.command()
@click.argument("key_id")
@click.option(
    "--overlap",
    type=duration,
    default="24h",
    show_default=True,
    help="How long the old key is still good.",
)
def rotate(key_id: str, overlap: int) -> None:
    """Make a key with the rights and the lifetime of KEY_ID, which then expires.

    The new key is printed, alone, on standard output.
    """
    from infra.contracts.moments import utc
    from infra.identity.key_topic import rotate_key

    named, ending_ms = _named(key_id), 0

    def make(publisher: Publisher, watcher: KeysWatcher, now_ms: int, actor: str) -> MadeKey:
        nonlocal ending_ms
        made = rotate_key(publisher, watcher, named, overlap_ms=overlap, now_ms=now_ms, actor=actor)
        old = watcher.ring.get(named)
        ending_ms = now_ms if old is None or old.expires_at_ms is None else old.expires_at_ms
        return made

    _print_once(_change(make))
    click.echo(f"{named} is good until {utc(ending_ms)}", err=True)


@keys.command()
@click.argument("key_id")
@click.option("--reason", required=True, help="Why; kept with the key.")
def revoke(key_id: str, reason: str) -> None:
    """Take KEY_ID out of use now and for ever."""
    from infra.contracts.moments import utc
    from infra.identity.key_topic import revoke_key

    named = _named(key_id)
    event = _change(
        lambda publisher, watcher, now_ms, actor: revoke_key(
            publisher, watcher, named, now_ms=now_ms, actor=actor, reason=reason
        )
    )
    click.echo(f"{named} was revoked at {utc(event.revoked_at_ms or 0)}")
    if event.replaced_by is not None:
        click.echo(f"its replacement {event.replaced_by} was not revoked with it", err=True)


@keys.command(name="list")
@click.option("--tenant", help="Only this tenant's.")
@click.option("--json", "as_json", is_flag=True, help="As one JSON array.")
def show(tenant: str | None, as_json: bool) -> None:
    """List keys, the oldest first: what each may do, and whether it is good."""
    from infra.identity.key_topic import read_keys
    from infra.kafka.bus import connect
    from infra.settings import load_settings

    with connect(load_settings()) as bus:
        found = read_keys(bus).keys()
    now_ms = time.time_ns() // 1_000_000
    rows = [_shown(key, now_ms) for key in found if tenant is None or key.tenant == tenant]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
    elif not rows:
        click.echo("no keys: `feedloom keys create` makes one", err=True)
    else:
        for line in _table(rows):
            click.echo(line)


def _shown(key: ApiKeyChanged, now_ms: int) -> dict[str, Any]:
    """What is told of a key; its hash is not."""
    from infra.contracts.moments import utc
    from infra.identity.keys import state_of

    def moment(at_ms: int | None) -> str | None:
        return None if at_ms is None else utc(at_ms)

    return {
        "key_id": key.key_id,
        "tenant": key.tenant,
        "name": key.name,
        "roles": list(key.roles),
        "models": list(key.models),
        "state": state_of(key, now_ms=now_ms),
        "created_at": moment(key.created_at_ms),
        "expires_at": moment(key.expires_at_ms),
        "revoked_at": moment(key.revoked_at_ms),
        "replaced_by": key.replaced_by,
        "actor": key.actor,
        "reason": key.reason,
    }


def _table(shown: Sequence[dict[str, Any]]) -> list[str]:
    """A header and a line a key, in columns; the reason last, as long as it is."""
    names = ("key_id", "tenant", "name", "roles", "models", "state", "expires_at", "reason")
    rows = [tuple(name.removesuffix("_at").replace("_", " ").upper() for name in names)]
    rows += [tuple(_cell(name, key[name]) for name in names) for key in shown]
    return columns(rows)


def _cell(column: str, value: Any) -> str:
    absent = {"expires_at": "never", "models": "all"}
    text = ",".join(value) if isinstance(value, list) else value
    return one_line(text or absent.get(column, "-"), MAX_TEXT)


def _named(key_id: str) -> str:
    """The id. A whole key is taken for its id, and nothing of its secret is shown."""
    found = re.match("fl_[0-9A-Za-z]{12}(?=_|$)", key_id)
    if found is None:
        raise click.BadParameter(
            "a key's id reads fl_ and twelve letters or digits (`feedloom keys list` shows all)",
            param_hint="KEY_ID",
        )
    return found[0]


def _print_once(made: MadeKey) -> None:
    from infra.contracts.moments import utc

    event = made.event
    until = "never expires" if event.expires_at_ms is None else f"until {utc(event.expires_at_ms)}"
    scope = f", only {', '.join(event.models)}" if event.models else ""
    click.echo(
        f"{event.key_id} of tenant {event.tenant}: {', '.join(event.roles)}{scope}; {until}\n"
        "the key follows; it is not shown again:",
        err=True,
    )
    click.echo(made.key.text)


def _change(change: Callable[[Publisher, KeysWatcher, int, str], T]) -> T:
    from infra.identity.key_topic import KeysWatcher
    from infra.kafka.bus import connect
    from infra.registry.commands import user
    from infra.settings import load_settings

    with connect(load_settings()) as bus:
        watcher, publisher = KeysWatcher(bus), bus.publisher(client_id="feedloom-keys")
        try:
            return change(publisher, watcher, time.time_ns() // 1_000_000, user())
        finally:
            publisher.close()
            watcher.close()
