"""API keys: how one reads, and which there are. Pure: no topic, no clock, no hashing.

A key reads ``fl_ID_SECRET``. ``fl_ID`` is its id, which is public; the secret ends with a checksum,
so that a key that was mistyped or cut short is told from an unknown one without any work.
"""

from __future__ import annotations

import re
import secrets
import string
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from infra.contracts.errors import ContractError, FeedloomError
from infra.contracts.events.platform import ApiKeyChanged
from infra.identity import hashing

PREFIX = "fl_"
ID_LENGTH = 12
SECRET_LENGTH = 43
"""Letters of base 62: 256.03 bits."""
CHECKSUM_LENGTH = 6

KeyState = Literal["active", "expired", "revoked"]

_ALPHABET = string.digits + string.ascii_uppercase + string.ascii_lowercase
_TEXT = re.compile(
    rf"({PREFIX}[0-9A-Za-z]{{{ID_LENGTH}}})_([0-9A-Za-z]{{{SECRET_LENGTH}}})"
    rf"([0-9A-Za-z]{{{CHECKSUM_LENGTH}}})"
)
_RIGHTS = ("tenant", "name", "roles", "models", "secret_hash", "created_at_ms")


class InvalidApiKey(FeedloomError):
    """A text is no API key. The message says what one looks like, and nothing of this one."""


class KeyRedefined(ContractError):
    """A record gives a key id to another key: another secret, tenant, name or other rights."""


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A whole key. Its ``repr`` shows the id alone."""

    key_id: str
    secret: str = field(repr=False)

    @property
    def text(self) -> str:
        """The key as its owner keeps it. This must go nowhere else."""
        begun = f"{self.key_id}_{self.secret}"
        return begun + _checksum(begun)


def make_key(choose: Callable[[str], str] = secrets.choice) -> ApiKey:
    """A new key; ``choose`` draws one letter of many."""

    def draw(length: int) -> str:
        return "".join(choose(_ALPHABET) for _ in range(length))

    return ApiKey(PREFIX + draw(ID_LENGTH), draw(SECRET_LENGTH))


def parse_key(text: str) -> ApiKey:
    """Read a key. Raises InvalidApiKey when it is none, or its checksum is wrong."""
    found = _TEXT.fullmatch(text)
    if found is None:
        raise InvalidApiKey(f"an API key reads {PREFIX}..._... and has {_LENGTH} characters")
    key = ApiKey(found[1], found[2])
    if _checksum(f"{key.key_id}_{key.secret}") != found[3]:
        raise InvalidApiKey("the API key is mistyped: its checksum does not fit")
    return key


_LENGTH = len(PREFIX) + ID_LENGTH + 1 + SECRET_LENGTH + CHECKSUM_LENGTH


def _checksum(text: str) -> str:
    """CRC-32 in base 62. It finds mistakes; it is no protection."""
    value, letters = zlib.crc32(text.encode()), ""
    for _ in range(CHECKSUM_LENGTH):
        value, digit = divmod(value, len(_ALPHABET))
        letters = _ALPHABET[digit] + letters
    return letters


def state_of(key: ApiKeyChanged, *, now_ms: int) -> KeyState:
    """Whether a key is good now. A revocation holds at once, whatever moment it names."""
    if key.revoked_at_ms is not None:
        return "revoked"
    if key.expires_at_ms is not None and key.expires_at_ms <= now_ms:
        return "expired"
    return "active"


def joined(standing: ApiKeyChanged, event: ApiKeyChanged) -> ApiKeyChanged:
    """Both changes of one key. What was taken away stays so: no order of them gives it back.

    The earlier revocation and the earlier expiry count. ``actor`` and ``reason`` are those of the
    change that took effect last, and of a revocation once there is one.
    """
    whole = msgspec.structs.replace(
        standing,
        expires_at_ms=_earlier(standing.expires_at_ms, event.expires_at_ms),
        revoked_at_ms=_earlier(standing.revoked_at_ms, event.revoked_at_ms),
        # Of two rotations at the same moment both made a key; either may be named.
        replaced_by=max(filter(None, (standing.replaced_by, event.replaced_by)), default=None),
    )
    revoked_before = standing.revoked_at_ms is not None
    if whole == standing or (revoked_before and whole.revoked_at_ms == standing.revoked_at_ms):
        return whole
    return msgspec.structs.replace(whole, actor=event.actor, reason=event.reason)


def _earlier(one: int | None, other: int | None) -> int | None:
    return min((moment for moment in (one, other) if moment is not None), default=None)


class KeyRing:
    """Every key, folded from the records of ``platform.keys`` in whatever order they come.

    One thread may apply while others read: an entry is replaced whole.
    """

    def __init__(self) -> None:
        self._keys: dict[str, ApiKeyChanged] = {}

    def apply(self, event: ApiKeyChanged) -> bool:
        """Take a change in; whether anything is different now.

        Raises:
            KeyRedefined: it is about another key of the same id; the first one stands.
            InvalidHash: its hash cannot be checked.
        """
        standing = self._keys.get(event.key_id)
        if standing is None:
            hashing.parse(event.secret_hash)
            self._keys[event.key_id] = event
            return True
        differing = [name for name in _RIGHTS if getattr(standing, name) != getattr(event, name)]
        if differing:
            raise KeyRedefined(
                f"{event.key_id} is redefined ({', '.join(differing)}); a key's rights never change"
            )
        whole = joined(standing, event)
        self._keys[event.key_id] = whole
        return whole != standing

    def forget(self, key_id: str) -> bool:
        """Take a tombstone in; whether there was such a key."""
        return self._keys.pop(key_id, None) is not None

    def get(self, key_id: str) -> ApiKeyChanged | None:
        """A key as it stands."""
        return self._keys.get(key_id)

    def keys(self) -> list[ApiKeyChanged]:
        """All of them, the oldest first."""
        return sorted(self._keys.values(), key=lambda key: (key.created_at_ms, key.key_id))
