"""The gateway's request ids: each says where its token log lies and whose it is.

Any replica finds a request's records by its id alone, so nothing about a request is kept in one
replica. An id commits to its tenant: another tenant that learns of it cannot use it, and cannot
change it either, since records are found by the whole id.
"""

from __future__ import annotations

import base64
import binascii
import secrets
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Literal

Kind = Literal["chatcmpl", "cmpl"]
_KINDS: tuple[Kind, ...] = ("chatcmpl", "cmpl")
_HEAD = struct.Struct(">HQ4s")
NONCE_BYTES = 16
_OWNER_BYTES = 8
_BYTES = _HEAD.size + NONCE_BYTES + _OWNER_BYTES


@dataclass(frozen=True, slots=True)
class RequestId:
    """A parsed id. ``partition`` of the chunk topic; ``created_at_ms`` since the epoch."""

    text: str
    kind: Kind
    partition: int
    created_at_ms: int
    model_digest: bytes
    nonce: bytes
    owner: bytes

    def model_of(self, models: Iterable[str]) -> str | None:
        """Which of these models was asked; ``None`` if none of them."""
        return next((name for name in models if _digest(name) == self.model_digest), None)

    def belongs_to(self, tenant: str) -> bool:
        """Whether it was made for this tenant."""
        return secrets.compare_digest(self.owner, _owner(tenant, self.nonce))


def mint(
    kind: Kind,
    *,
    tenant: str,
    model: str,
    partition: int,
    created_at_ms: int,
    nonce: bytes | None = None,
) -> RequestId:
    """A new id, which nobody can guess; with a ``nonce`` always the same one."""
    nonce = secrets.token_bytes(NONCE_BYTES) if nonce is None else nonce
    owner, digest = _owner(tenant, nonce), _digest(model)
    packed = _HEAD.pack(partition, created_at_ms, digest) + nonce + owner
    text = f"{kind}-{base64.b32encode(packed).decode().rstrip('=').lower()}"
    return RequestId(text, kind, partition, created_at_ms, digest, nonce, owner)


def parse(text: str) -> RequestId | None:
    """The id that a caller names; ``None`` if no gateway made it."""
    name, _, packed = text.partition("-")
    kind = next((kind for kind in _KINDS if kind == name), None)
    if kind is None or packed != packed.lower() or not packed.isascii():
        return None
    try:
        raw = base64.b32decode(packed.upper() + "=" * (-len(packed) % 8))
    except binascii.Error:
        return None
    # The spare bits of the last letter must not give one request several names.
    if len(raw) != _BYTES or base64.b32encode(raw).decode().rstrip("=").lower() != packed:
        return None
    partition, created_at_ms, digest = _HEAD.unpack_from(raw)
    nonce, owner = raw[_HEAD.size : -_OWNER_BYTES], raw[-_OWNER_BYTES:]
    return RequestId(text, kind, partition, created_at_ms, digest, nonce, owner)


def _digest(model: str) -> bytes:
    return blake2b(model.encode(), digest_size=4).digest()


def _owner(tenant: str, nonce: bytes) -> bytes:
    return blake2b(tenant.encode(), key=nonce, digest_size=_OWNER_BYTES).digest()
