"""Tokens of an OIDC issuer (RFC 7519), checked as RFC 8725 asks.

The algorithm comes from the settings and the key's kind, never from the token alone; ``none`` and
HMAC cannot be configured.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import jwt

from infra.contracts.errors import ConfigurationError
from infra.contracts.events.platform import Role
from infra.identity.jwks import IssuerKeys
from infra.identity.principal import Principal, Unauthenticated, is_tenant
from infra.settings import GatewaySettings

MAX_TOKEN_BYTES = 8 * 1024
MAX_SUBJECT = 256

_ROLES: frozenset[Role] = frozenset(get_args(Role))


class TokenVerifier:
    """Turns a token of the configured issuer into a principal."""

    def __init__(self, settings: GatewaySettings, *, issuer: str, keys: IssuerKeys) -> None:
        self._issuer = issuer
        self._keys = keys
        self._audience = settings.jwt_audience
        self._algorithms = settings.jwt_algorithms
        self._leeway_s = settings.jwt_leeway_s
        self._tenant_claim = settings.jwt_tenant_claim
        self._roles_claim = settings.jwt_roles_claim

    async def principal(self, token: str) -> Principal:
        """Who the token is of. Raises Unauthenticated, AuthenticationUnavailable."""
        if len(token) > MAX_TOKEN_BYTES:
            raise Unauthenticated(f"the token is longer than {MAX_TOKEN_BYTES} bytes")
        header = _checked(lambda: jwt.get_unverified_header(token))
        algorithm = header.get("alg")
        if algorithm not in self._algorithms:
            raise Unauthenticated(
                f"the token's algorithm is not accepted; accepted: {', '.join(self._algorithms)}"
            )
        key = await self._keys.key(header.get("kid"), algorithm)
        claims = _checked(
            lambda: jwt.decode(
                token,
                key,
                algorithms=[algorithm],
                audience=self._audience,
                issuer=self._issuer,
                leeway=self._leeway_s,
                options={
                    "require": ["exp", "iss", "aud", "sub"],
                    "enforce_minimum_key_length": True,
                },
            )
        )
        return self._principal(claims)

    def _principal(self, claims: dict[str, Any]) -> Principal:
        tenant = claim(claims, self._tenant_claim)
        if not isinstance(tenant, str) or not is_tenant(tenant):
            raise Unauthenticated(
                f"the token's claim {self._tenant_claim!r} must name a tenant: 1 to 128 printable "
                "characters, no / and no space at either end"
            )
        subject = claims["sub"]
        if not 1 <= len(subject) <= MAX_SUBJECT or not subject.isprintable():
            raise Unauthenticated(
                f"the token's claim 'sub' must be 1 to {MAX_SUBJECT} printable characters"
            )
        return Principal(
            tenant=tenant,
            subject=subject,
            roles=roles(claim(claims, self._roles_claim)),
            credential=f"token of {subject}",
        )


def token_verifier(settings: GatewaySettings) -> TokenVerifier | None:
    """The verifier of these settings; ``None`` when no issuer is set.

    Raises ConfigurationError: the settings would accept tokens that are not for this service.
    """
    issuer = settings.jwt_issuer
    if issuer is None:
        if settings.jwks_url is not None or settings.jwt_audience is not None:
            raise ConfigurationError(
                "tokens are accepted only of a known issuer: set FEEDLOOM_GATEWAY__JWT_ISSUER"
            )
        return None
    if settings.jwt_audience is None:
        raise ConfigurationError(
            "an issuer signs tokens for other services too: set FEEDLOOM_GATEWAY__JWT_AUDIENCE to "
            "what `aud` is in those for this one"
        )
    if not settings.jwt_algorithms:
        raise ConfigurationError("FEEDLOOM_GATEWAY__JWT_ALGORITHMS names no algorithm")
    keys = IssuerKeys(issuer, settings.jwks_url, settings.jwt_algorithms)
    return TokenVerifier(settings, issuer=issuer, keys=keys)


def claim(claims: dict[str, Any], name: str) -> Any:
    """The claim of that name; else what a path with dots leads to; ``None`` if there is neither.

    Keycloak puts roles below ``realm_access.roles``, Auth0 under a name that is a URL.
    """
    if name in claims:
        return claims[name]
    found: Any = claims
    for step in name.split("."):
        if not isinstance(found, dict) or step not in found:
            return None
        found = found[step]
    return found


def roles(value: Any) -> frozenset[Role]:
    """The platform's roles in a claim, a list or one string with spaces; others are dropped."""
    named = value.split() if isinstance(value, str) else value
    if not isinstance(named, list):
        return frozenset()
    return frozenset(role for role in _ROLES if role in named)


def _checked(read: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What PyJWT reads; its errors in words for the caller, with nothing of the token in them."""
    try:
        return read()
    except jwt.ExpiredSignatureError as error:
        raise Unauthenticated("the token has expired: get a new one") from error
    except jwt.ImmatureSignatureError as error:
        raise Unauthenticated("the token is not valid yet: its issuer's clock is ahead") from error
    except jwt.InvalidAudienceError as error:
        raise Unauthenticated("the token is for another audience") from error
    except jwt.InvalidIssuerError as error:
        raise Unauthenticated("the token is of another issuer") from error
    except jwt.MissingRequiredClaimError as error:
        raise Unauthenticated(f"the token has no claim {error.claim!r}") from error
    except jwt.PyJWTError as error:
        raise Unauthenticated("the token is not valid") from error
