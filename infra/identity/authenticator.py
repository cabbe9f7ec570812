"""Who the bearer of a credential is: an API key's tenant, or the subject of an issuer's token."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable
from hashlib import blake2b
from typing import get_args

from infra.contracts.bus import Bus
from infra.contracts.errors import ConfigurationError
from infra.contracts.events.platform import Role
from infra.identity import hashing
from infra.identity.jwt import token_verifier
from infra.identity.key_topic import KeysWatcher
from infra.identity.keys import PREFIX, ApiKey, InvalidApiKey, parse_key, state_of
from infra.identity.loopback import is_loopback
from infra.identity.principal import AuthenticationUnavailable, Principal, Unauthenticated
from infra.settings import GatewaySettings
from observability.instruments import GATEWAY_UNAUTHENTICATED, REASON

log = logging.getLogger(__name__)

HASHES_AT_ONCE = 2
REMEMBERED = 10_000
"""Right secrets, and as many wrong ones."""
WAITING_SECRETS = 8
"""Different secrets that may wait to be checked for one key: all but one of them are guesses."""

EVERYBODY = Principal(
    tenant="default",
    subject="anonymous",
    roles=frozenset(get_args(Role)),
    credential="none",
)
"""Every caller, where nobody is asked."""


class PlatformAuthenticator:
    """Checks API keys against ``platform.keys``, and tokens against the configured issuer.

    ``poll`` and ``close`` may run in another thread than ``authenticate``, which belongs to one
    event loop. ``clock`` gives seconds since the epoch.

    Raises ConfigurationError: authentication is off and the gateway can be reached from elsewhere,
    or the settings for tokens do not fit together; FatalError: the topic cannot be read.
    """

    def __init__(
        self, bus: Bus, settings: GatewaySettings, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._clock = clock
        self._tokens = token_verifier(settings)
        self._checks = SecretChecks()
        self._watcher: KeysWatcher | None = None
        if settings.authentication:
            self._watcher = KeysWatcher(bus)
            self._watcher.catch_up()
        elif not is_loopback(settings.host):
            raise ConfigurationError(
                f"without authentication the gateway listens on a loopback address only, not on "
                f"{settings.host}: set FEEDLOOM_GATEWAY__HOST to 127.0.0.1, or "
                "FEEDLOOM_GATEWAY__AUTHENTICATION to true"
            )

    @property
    def required(self) -> bool:
        """Whether a call without a credential is refused."""
        return self._watcher is not None

    def anonymous(self) -> Principal:
        """The caller that sends no credential. Raises Unauthenticated where one is required."""
        if self.required:
            raise _refused("none", "send an API key or a token as `Authorization: Bearer ...`")
        return EVERYBODY

    async def authenticate(self, credential: str) -> Principal:
        """Of what follows ``Bearer``; with authentication off, of anything.

        A key that was revoked or has expired since it was last used is refused at once.

        Raises:
            Unauthenticated: it proves nothing, or no more.
            AuthenticationUnavailable: it cannot be checked now, and may be good.
        """
        if self._watcher is None:
            return EVERYBODY
        if credential.startswith(PREFIX):
            return await self._of_key(self._watcher, credential)
        if credential.count(".") != 2:
            raise _refused("malformed", "the credential is neither an API key nor a token")
        if self._tokens is None:
            raise _refused("token", "tokens are not accepted here: send an API key")
        try:
            return await self._tokens.principal(credential)
        except Unauthenticated:
            GATEWAY_UNAUTHENTICATED.add(1, {REASON: "token"})
            raise

    async def _of_key(self, watcher: KeysWatcher, text: str) -> Principal:
        try:
            key = parse_key(text)
        except InvalidApiKey as error:
            raise _refused("malformed", str(error)) from error
        known = watcher.ring.get(key.key_id)
        if known is None or not await self._checks.match(key, known.secret_hash):
            raise _refused("unknown", "the API key is not valid")
        # Looked at again: checking takes a while, in which it may have been revoked.
        standing = watcher.ring.get(key.key_id)
        if standing is None:
            raise _refused("unknown", "the API key is not valid")
        state = state_of(standing, now_ms=int(self._clock() * 1000))
        if state == "revoked":
            raise _refused("revoked", "the API key was revoked")
        if state == "expired":
            raise _refused("expired", "the API key has expired")
        return Principal(
            tenant=standing.tenant,
            # A rotated key keeps its name, and with it its share in what is learnt.
            subject=standing.name,
            roles=frozenset(standing.roles),
            credential=standing.key_id,
            models=frozenset(standing.models),
        )

    def poll(self, timeout_s: float) -> None:
        """Take in changes of keys. Waits up to ``timeout_s`` for one."""
        if self._watcher is not None and (changed := self._watcher.poll(timeout_s)):
            log.info("API keys changed: %s", ", ".join(changed))

    def close(self) -> None:
        """Let go of the connection."""
        if self._watcher is not None:
            self._watcher.close()


def _refused(reason: str, message: str) -> Unauthenticated:
    """Counted for operators; the caller is told the message."""
    GATEWAY_UNAUTHENTICATED.add(1, {REASON: reason})
    return Unauthenticated(message)


class SecretChecks:
    """Whether a secret fits a hash, worked out once. For one event loop.

    scrypt runs in threads, two at once, and for one key one at a time: whoever knows an id can
    keep one thread busy and no more. What came out is remembered under a digest that is keyed
    anew in every process; the secrets themselves are not kept.
    """

    def __init__(self, matches: Callable[[str, str], bool] | None = None) -> None:
        self._matches = matches or (lambda text, secret: hashing.parse(text).matches(secret))
        self._process_key = secrets.token_bytes(32)
        self._right: OrderedDict[bytes, None] = OrderedDict()
        self._wrong: OrderedDict[bytes, None] = OrderedDict()
        self._pending: dict[bytes, asyncio.Task[bool]] = {}
        self._waiting: Counter[str] = Counter()
        self._lanes: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._slots = asyncio.Semaphore(HASHES_AT_ONCE)

    async def match(self, key: ApiKey, secret_hash: str) -> bool:
        """Whether the key's secret is that of the hash.

        Raises AuthenticationUnavailable when too many others wait to be checked for this key.
        """
        digest = self._digest(key, secret_hash)
        for outcomes, matched in ((self._right, True), (self._wrong, False)):
            if digest in outcomes:
                outcomes.move_to_end(digest)
                return matched
        task = self._pending.get(digest)
        if task is None:
            if self._waiting[key.key_id] >= WAITING_SECRETS:
                raise AuthenticationUnavailable(
                    "too many different secrets are being tried for this API key; try again"
                )
            task = asyncio.create_task(self._check(key, secret_hash, digest))
            self._pending[digest] = task
            self._waiting[key.key_id] += 1
        # A caller who hangs up must not end the check for others with the same key.
        return await asyncio.shield(task)

    async def _check(self, key: ApiKey, secret_hash: str, digest: bytes) -> bool:
        try:
            async with self._lanes[key.key_id], self._slots:
                matched = await asyncio.to_thread(self._matches, secret_hash, key.secret)
        finally:
            del self._pending[digest]
            self._waiting[key.key_id] -= 1
            if not self._waiting[key.key_id]:
                del self._waiting[key.key_id], self._lanes[key.key_id]
        outcomes = self._right if matched else self._wrong
        outcomes[digest] = None
        if len(outcomes) > REMEMBERED:
            outcomes.popitem(last=False)
        return matched

    def _digest(self, key: ApiKey, secret_hash: str) -> bytes:
        return blake2b(
            f"{key.key_id}\0{key.secret}\0{secret_hash}".encode(),
            key=self._process_key,
            digest_size=32,
        ).digest()
