"""Secrets at rest: scrypt (RFC 7914), its parameters and salt beside the hash.

Knows nothing of keys or topics. The text is that of the PHC string format:
``$scrypt$ln=14,r=8,p=1$SALT$HASH``, salt and hash in unpadded base64.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass

from infra.contracts.errors import ContractError

LOG2_N, R, P = 14, 8, 1
"""16 MiB and tens of milliseconds a hash: a secret of 256 random bits needs no more."""
SALT_BYTES = 16
HASH_BYTES = 32

_MAX_LOG2_N, _MAX_R, _MAX_P = 16, 16, 4
"""A record must not make its readers spend more than seconds and 128 MiB."""
_TEXT = re.compile(
    r"\$scrypt\$ln=([1-9][0-9]?),r=([1-9][0-9]?),p=([1-9])\$([A-Za-z0-9+/]+)\$([A-Za-z0-9+/]+)"
)


class InvalidHash(ContractError):
    """A text is no hash that this module makes, or one that costs too much to check."""


@dataclass(frozen=True, slots=True)
class ScryptHash:
    """A parsed hash. CPU cost is ``2**log2_n * r * p``, memory ``128 * 2**log2_n * r`` bytes."""

    log2_n: int
    r: int
    p: int
    salt: bytes
    digest: bytes

    @property
    def text(self) -> str:
        """The form that is stored."""
        parameters = f"ln={self.log2_n},r={self.r},p={self.p}"
        return f"$scrypt${parameters}${_encoded(self.salt)}${_encoded(self.digest)}"

    def matches(self, secret: str) -> bool:
        """Whether it is the hash of this secret; compares in constant time."""
        derived = _scrypt(secret, self.salt, self.log2_n, self.r, self.p)
        return hmac.compare_digest(derived, self.digest)


def hashed(secret: str) -> str:
    """The stored form of a secret, with a new salt."""
    salt = secrets.token_bytes(SALT_BYTES)
    return ScryptHash(LOG2_N, R, P, salt, _scrypt(secret, salt, LOG2_N, R, P)).text


def parse(text: str) -> ScryptHash:
    """Read a stored form. Raises InvalidHash."""
    found = _TEXT.fullmatch(text)
    if found is None:
        raise InvalidHash("a hash reads $scrypt$ln=...,r=...,p=...$salt$hash; this does not")
    log2_n, r, p = (int(number) for number in found.groups()[:3])
    if log2_n > _MAX_LOG2_N or r > _MAX_R or p > _MAX_P:
        raise InvalidHash(
            f"a hash with ln={log2_n}, r={r}, p={p} costs too much to check; at most "
            f"ln={_MAX_LOG2_N}, r={_MAX_R}, p={_MAX_P}"
        )
    parsed = ScryptHash(log2_n, r, p, _decoded(found[4]), _decoded(found[5]))
    if len(parsed.salt) < SALT_BYTES or len(parsed.digest) != HASH_BYTES or parsed.text != text:
        raise InvalidHash(
            f"a hash has {HASH_BYTES} bytes and a salt of at least {SALT_BYTES}, in unpadded base64"
        )
    return parsed


def _scrypt(secret: str, salt: bytes, log2_n: int, r: int, p: int) -> bytes:
    n = 2**log2_n
    return hashlib.scrypt(
        secret.encode(),
        salt=salt,
        n=n,
        r=r,
        p=p,
        # OpenSSL counts the blocks of p and two of its own besides the table, and stops at 32 MiB.
        maxmem=128 * r * (n + p + 2) + 1024,
        dklen=HASH_BYTES,
    )


def _encoded(data: bytes) -> str:
    return base64.b64encode(data).decode().rstrip("=")


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except binascii.Error as error:
        raise InvalidHash(f"the salt or the hash is no base64: {error}") from error
