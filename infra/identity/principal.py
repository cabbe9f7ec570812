"""Who calls, and what they may do."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from infra.contracts.errors import FeedloomError, RetryableError
from infra.contracts.events.platform import Role

MAX_TENANT = 128


class Unauthenticated(FeedloomError):
    """No credential, or one that proves nothing. The message is for the caller."""


class AuthenticationUnavailable(RetryableError):
    """Nobody can say now whether the credential is good. The message is for the caller."""


class Forbidden(FeedloomError):
    """The credential is good, and not for this. The message is for the caller."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Principal:
    """An authenticated caller. ``tenant`` comes from the credential, never from a request.

    ``models``: those that it may use; empty: all. ``credential`` names it in logs; it is no secret.
    """

    tenant: str
    subject: str
    roles: frozenset[Role]
    credential: str
    models: frozenset[str] = field(default_factory=frozenset)

    def require(self, *roles: Role) -> None:
        """Raise Forbidden unless it has one of the roles."""
        if not self.roles.intersection(roles):
            raise Forbidden(
                f"this needs the role {' or '.join(roles)}; the credential has "
                f"{', '.join(sorted(self.roles)) or 'none'}"
            )

    def require_model(self, model: str) -> None:
        """Raise Forbidden unless it may use a model."""
        if self.models and model not in self.models:
            raise Forbidden(f"the credential is not for model {model!r}")


def is_tenant(name: str) -> bool:
    """Whether this can name a tenant.

    A slash would make ``TENANT/SUBJECT``, by which feedback is counted, mean two principals.
    """
    return (
        1 <= len(name) <= MAX_TENANT
        and name.isprintable()
        and "/" not in name
        and name == name.strip()
    )


class Authenticator(Protocol):
    """Turns a credential into a principal."""

    @property
    def required(self) -> bool:
        """Whether a call without a credential is refused."""
        ...

    def anonymous(self) -> Principal:
        """The caller that sends no credential. Raises Unauthenticated where one is required."""
        ...

    async def authenticate(self, credential: str) -> Principal:
        """Of what follows ``Bearer``. Raises Unauthenticated, AuthenticationUnavailable."""
        ...
