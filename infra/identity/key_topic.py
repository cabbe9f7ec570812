"""The topic ``platform.keys``: watch it, and write to it.

A record is a key as a whole, as compaction keeps the last one of a key only. Two writers at the
same moment could therefore undo each other; :func:`publish_key` reads back what it wrote, and
writes what both came to until that is what stands.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import msgspec

from infra.contracts import catalogue, codec
from infra.contracts.bus import Bus, Publisher, Record, catch_up
from infra.contracts.errors import ContractError, FeedloomError, RetryableError
from infra.contracts.events.platform import ApiKeyChanged, Role
from infra.identity import hashing
from infra.identity.keys import ApiKey, KeyRing, joined, make_key, state_of
from infra.identity.principal import is_tenant
from infra.registry.client import ACKNOWLEDGE_TIMEOUT_S, send

log = logging.getLogger(__name__)

TOPIC = catalogue.KEYS.name
SOURCE = "feedloom/identity"
MAX_NAME = 100
ATTEMPTS = 5


class KeyRefused(FeedloomError):
    """A key cannot be made as it was asked for; the message says what to change."""


class UnknownKey(FeedloomError):
    """There is no key of that id."""


class KeyIsOver(FeedloomError):
    """A key that was revoked, has expired or was replaced cannot be rotated."""


class KeyOvertaken(RetryableError):
    """Others changed the same key again and again. Look at it before another try."""


class KeysWatcher:
    """Reads the topic from the beginning, without a group: every process knows every key."""

    def __init__(self, bus: Bus) -> None:
        self.ring = KeyRing()
        self._bus = bus
        self._reader = bus.reader([TOPIC])

    def poll(self, timeout_s: float) -> list[str]:
        """Take in what came; returns the ids of the keys that changed, in order.

        A record that cannot be read, or that gives a key other rights, is logged and passed over.
        """
        changed: list[str] = []
        for record in self._reader.poll(timeout_s):
            try:
                if self._apply(record):
                    changed.append(record.key_text)
            except ContractError as error:
                log.warning("record on %s passed over: %s", record.where, error)
        return changed

    def _apply(self, record: Record) -> bool:
        written_as = record.key_text
        if record.value is None:
            return self.ring.forget(written_as)
        event = codec.decode(record.value, ApiKeyChanged)
        if event.key_id != written_as:
            # Compaction goes by the record's key: it would keep this beside the real one.
            raise ContractError(f"a change of {event.key_id!r} under the key {written_as!r}")
        return self.ring.apply(event)

    def catch_up(self, timeout_s: float = 30) -> None:
        """Poll up to the end that the topic has now. Raises FatalError after ``timeout_s``."""
        catch_up(self._bus, self._reader, [TOPIC], self.poll, what=TOPIC, timeout_s=timeout_s)

    def close(self) -> None:
        """Let go of the connection."""
        self._reader.close()


def read_keys(bus: Bus) -> KeyRing:
    """The keys as they stand. Raises FatalError when the topic cannot be read."""
    watcher = KeysWatcher(bus)
    try:
        watcher.catch_up()
    finally:
        watcher.close()
    return watcher.ring


@dataclass(frozen=True, slots=True)
class MadeKey:
    """A new key as it stands on the topic, and the one copy of the key itself."""

    key: ApiKey
    event: ApiKeyChanged


def create_key(
    publisher: Publisher,
    watcher: KeysWatcher,
    *,
    tenant: str,
    name: str,
    roles: tuple[Role, ...],
    now_ms: int,
    models: tuple[str, ...] = (),
    expires_at_ms: int | None = None,
    actor: str = "",
    reason: str = "",
) -> MadeKey:
    """Make a key and wait until it stands. Raises KeyRefused: a name that cannot be, no role."""
    if not is_tenant(tenant):
        raise KeyRefused(
            f"{tenant!r} cannot name a tenant: 1 to 128 printable characters, no / and no space "
            "at either end"
        )
    if not 1 <= len(name) <= MAX_NAME or not name.isprintable() or name != name.strip():
        raise KeyRefused(
            f"{name!r} cannot name a key: 1 to {MAX_NAME} printable characters, no space at "
            "either end"
        )
    if not roles:
        raise KeyRefused("a key without a role may do nothing: give it one at least")
    key = make_key()
    event = ApiKeyChanged(
        key_id=key.key_id,
        tenant=tenant,
        name=name,
        roles=tuple(sorted(set(roles))),
        secret_hash=hashing.hashed(key.secret),
        created_at_ms=now_ms,
        expires_at_ms=expires_at_ms,
        models=tuple(sorted(set(models))),
        actor=actor,
        reason=reason,
    )
    return MadeKey(key, publish_key(publisher, watcher, event))


def rotate_key(
    publisher: Publisher,
    watcher: KeysWatcher,
    key_id: str,
    *,
    overlap_ms: int,
    now_ms: int,
    actor: str = "",
) -> MadeKey:
    """Make a key with the same rights and lifetime; the old one expires after ``overlap_ms``.

    The new key stands before the old one is touched: what fails in between leaves the old one good.

    Raises:
        UnknownKey: there is no such key.
        KeyIsOver: it was revoked, has expired or was replaced already.
    """
    old = _standing(watcher, key_id)
    state = state_of(old, now_ms=now_ms)
    if state != "active":
        raise KeyIsOver(f"{key_id} is {state}: `feedloom keys create` makes a new key")
    if old.replaced_by is not None:
        raise KeyIsOver(f"{key_id} was replaced by {old.replaced_by} already: rotate that one")
    lifetime_ms = None if old.expires_at_ms is None else old.expires_at_ms - old.created_at_ms
    made = create_key(
        publisher,
        watcher,
        tenant=old.tenant,
        name=old.name,
        roles=old.roles,
        models=old.models,
        now_ms=now_ms,
        expires_at_ms=None if lifetime_ms is None else now_ms + lifetime_ms,
        actor=actor,
        reason=f"replaces {key_id}",
    )
    ending = msgspec.structs.replace(
        old,
        expires_at_ms=now_ms + overlap_ms,
        replaced_by=made.key.key_id,
        actor=actor,
        reason=f"replaced by {made.key.key_id}",
    )
    publish_key(publisher, watcher, joined(old, ending))
    return made


def revoke_key(
    publisher: Publisher,
    watcher: KeysWatcher,
    key_id: str,
    *,
    now_ms: int,
    actor: str = "",
    reason: str = "",
) -> ApiKeyChanged:
    """Take a key out of use and wait until that stands; again does no harm. Raises UnknownKey."""
    old = _standing(watcher, key_id)
    if old.revoked_at_ms is not None:
        return old
    event = msgspec.structs.replace(old, revoked_at_ms=now_ms, actor=actor, reason=reason)
    return publish_key(publisher, watcher, event)


def _standing(watcher: KeysWatcher, key_id: str) -> ApiKeyChanged:
    watcher.catch_up()
    found = watcher.ring.get(key_id)
    if found is None:
        raise UnknownKey(f"there is no key {key_id!r} (`feedloom keys list` shows all)")
    return found


def publish_key(publisher: Publisher, watcher: KeysWatcher, event: ApiKeyChanged) -> ApiKeyChanged:
    """Publish a key as it is to be; returns it as it stands, with what others changed meanwhile.

    Raises KeyOvertaken when others never let it rest, FatalError or DeliveryFailed when the topic
    cannot be read or written.
    """
    for _ in range(ATTEMPTS):
        send(publisher, TOPIC, event.key_id, event, source=SOURCE).result(ACKNOWLEDGE_TIMEOUT_S)
        watcher.catch_up()
        standing = watcher.ring.get(event.key_id)
        if standing is None:
            raise KeyOvertaken(f"{event.key_id} was deleted from {TOPIC} at the same moment")
        if standing == event:
            return event
        event = standing
    raise KeyOvertaken(f"others keep changing {event.key_id}; it is now as `keys list` shows it")
