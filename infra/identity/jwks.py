"""The keys with which an OIDC issuer signs its tokens, fetched and kept.

They come from the issuer's JWK set (RFC 7517), whose address is given or found in its discovery
document (OpenID Connect Discovery 1.0). This decides nothing about tokens.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

import httpx
import jwt

from infra.contracts.errors import ConfigurationError, FeedloomError
from infra.identity.loopback import is_loopback
from infra.identity.principal import AuthenticationUnavailable, Unauthenticated

log = logging.getLogger(__name__)

KEEP_S = 600.0
"""Keys are used for so long before they are fetched again."""
REFETCH_S = 30.0
"""The shortest time between two fetches, whatever key ids callers make up."""
RETRY_S = 5.0
"""The same, while not one key is known."""
FETCH_TIMEOUT_S = 5.0
"""Of one document, from the connection to its last byte."""
MAX_DOCUMENT_BYTES = 512 * 1024
MAX_KEYS = 100

DISCOVERY = "/.well-known/openid-configuration"

_KINDS = {
    **dict.fromkeys(("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"), ("RSA", None)),
    "ES256": ("EC", "P-256"),
    "ES384": ("EC", "P-384"),
    "EdDSA": ("OKP", None),
}
"""What a key must be for each algorithm: ``kty``, and ``crv`` where the algorithm fixes it."""

Keys = dict[tuple[str | None, str], jwt.PyJWK]
"""By ``kid`` and algorithm."""


class IssuerRefused(FeedloomError):
    """An issuer's document is not what it must be, or lies where it must not."""


class IssuerKeys:
    """The signing keys of one issuer. For one event loop; ``clock`` counts seconds.

    ``jwks_url`` ``None``: the discovery document names it. Raises ConfigurationError: an address
    is not https, nor http on this machine.
    """

    def __init__(
        self,
        issuer: str,
        jwks_url: str | None,
        algorithms: Sequence[str],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        try:
            checked_url(issuer if jwks_url is None else jwks_url)
        except IssuerRefused as error:
            name = "JWT_ISSUER" if jwks_url is None else "JWKS_URL"
            raise ConfigurationError(f"FEEDLOOM_GATEWAY__{name}: {error}") from error
        self._issuer = issuer
        self._jwks_url = jwks_url
        self._algorithms = tuple(algorithms)
        self._clock = clock
        # Reading the machine's certificates takes too long for the event loop.
        self._tls = httpx.create_ssl_context()
        self._keys: Keys = {}
        self._kept_at = 0.0
        self._tried_at: float | None = None
        self._fault: str | None = None
        self._fetching: asyncio.Task[None] | None = None

    async def key(self, kid: str | None, algorithm: str) -> jwt.PyJWK:
        """The key of that id for that algorithm; without an id, the only one there is.

        All who ask while a fetch is under way wait for that one. Known keys are used while the
        issuer cannot be reached.

        Raises:
            Unauthenticated: the issuer publishes no such key.
            AuthenticationUnavailable: the issuer's keys cannot be fetched now.
        """
        found = self._find(kid, algorithm)
        if self._may_fetch(found):
            fetching = self._fetch_once()
            if found is None or self._fault is None:
                # A caller who hangs up must not end the fetch for the others.
                await asyncio.shield(fetching)
                found = self._find(kid, algorithm)
        if found is not None:
            return found
        if self._fault is not None:
            raise AuthenticationUnavailable(
                "the token cannot be checked: its issuer's keys cannot be fetched; try again later"
            )
        raise Unauthenticated("the token is signed with a key that its issuer does not publish")

    def _find(self, kid: str | None, algorithm: str) -> jwt.PyJWK | None:
        if kid is not None:
            return self._keys.get((kid, algorithm))
        fitting = [key for (_, name), key in self._keys.items() if name == algorithm]
        return fitting[0] if len(fitting) == 1 else None

    def _may_fetch(self, found: jwt.PyJWK | None) -> bool:
        now = self._clock()
        if found is not None and now - self._kept_at < KEEP_S:
            return False
        least_s = REFETCH_S if self._keys else RETRY_S
        return (
            self._fetching is not None or self._tried_at is None or now - self._tried_at >= least_s
        )

    def _fetch_once(self) -> asyncio.Task[None]:
        if self._fetching is None:
            self._tried_at = self._clock()
            self._fetching = asyncio.create_task(self._fetch())
        return self._fetching

    async def _fetch(self) -> None:
        try:
            url = self._jwks_url or await self._discover()
            self._keys = signing_keys(await self._get(url), self._algorithms)
            self._kept_at = self._clock()
            self._fault = None
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, IssuerRefused) as error:
            self._fault = f"{type(error).__name__}: {error}"
            log.warning(
                "the signing keys of %s were not fetched, %d known ones stay in use: %s",
                self._issuer,
                len(self._keys),
                self._fault,
            )
        finally:
            self._fetching = None

    async def _discover(self) -> str:
        document = await self._get(self._issuer.rstrip("/") + DISCOVERY)
        if document.get("issuer") != self._issuer:
            raise IssuerRefused("the discovery document is another issuer's")
        url = document.get("jwks_uri")
        if not isinstance(url, str):
            raise IssuerRefused("the discovery document has no jwks_uri")
        return url

    async def _get(self, url: str) -> dict[str, Any]:
        checked_url(url)
        # A proxy is no way to this machine itself.
        proxied = not is_loopback(urlsplit(url).hostname or "")
        async with (
            asyncio.timeout(FETCH_TIMEOUT_S),
            httpx.AsyncClient(
                verify=self._tls, trust_env=proxied, timeout=FETCH_TIMEOUT_S
            ) as client,
            # Not compressed: the size that counts is the size that comes.
            client.stream("GET", url, headers={"Accept-Encoding": "identity"}) as response,
        ):
            if response.status_code != httpx.codes.OK:
                raise IssuerRefused(f"{url} answers {response.status_code}")
            body = bytearray()
            async for part in response.aiter_raw():
                body += part
                if len(body) > MAX_DOCUMENT_BYTES:
                    raise IssuerRefused(f"{url} is longer than {MAX_DOCUMENT_BYTES} bytes")
        return _document(bytes(body), url)


def _document(body: bytes, url: str) -> dict[str, Any]:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise IssuerRefused(f"{url} is not JSON") from error
    if not isinstance(document, dict):
        raise IssuerRefused(f"{url} is not a JSON object")
    return document


def checked_url(url: str) -> str:
    """``url``, if keys may come from there. Raises IssuerRefused."""
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError as error:
        raise IssuerRefused(f"{url!r} is no address: {error}") from error
    if not host or parts.username is not None or parts.scheme not in ("http", "https"):
        raise IssuerRefused(f"{url!r} is not an https address")
    if parts.scheme == "http" and not is_loopback(host):
        raise IssuerRefused(f"{url!r} must be https: whoever is on the way could put in a key")
    return url


def signing_keys(document: dict[str, Any], algorithms: Sequence[str]) -> Keys:
    """The public keys of a JWK set that may sign, for each algorithm that they can be used with.

    Those of other kinds, symmetric or private ones and broken ones are passed over, as RFC 7517
    asks. Raises IssuerRefused when none is left.
    """
    listed = document.get("keys")
    if not isinstance(listed, list):
        raise IssuerRefused("the key set has no list of keys")
    found: Keys = {}
    for one in listed[:MAX_KEYS]:
        if not isinstance(one, dict):
            continue
        kid = one.get("kid")
        for algorithm in algorithms:
            if not _fits(one, algorithm) or not isinstance(kid, str | None):
                continue
            try:
                found.setdefault((kid, algorithm), jwt.PyJWK(one, algorithm))
            except jwt.PyJWTError as error:
                log.warning("a signing key was passed over: %s", type(error).__name__)
    if not found:
        raise IssuerRefused(f"the key set has no key for {', '.join(algorithms)}")
    return found


def _fits(key: dict[str, Any], algorithm: str) -> bool:
    kind, curve = _KINDS[algorithm]
    operations = key.get("key_ops", ["verify"])
    return (
        key.get("kty") == kind
        and (curve is None or key.get("crv") == curve)
        and key.get("alg", algorithm) == algorithm
        and key.get("use", "sig") == "sig"
        and isinstance(operations, list)
        and "verify" in operations
        and "d" not in key
    )
