"""What a call asks of the admission log, and what the log's decision means to its caller. Pure."""

from __future__ import annotations

from hashlib import blake2b

import msgspec

from infra.contracts.config_sections import TenantConfig
from infra.contracts.events.gateway import AdmissionAsked
from producers.gateway import identifiers
from producers.gateway.errors import ApiError, invalid
from producers.gateway.identifiers import Kind, RequestId
from producers.gateway.ledger import Admitted, Decision, Duplicate, Refused
from producers.gateway.questions import Question

_SAID = {
    "requests_per_minute": "requests a minute",
    "tokens_per_minute": "tokens a minute",
    "concurrent_requests": "requests at once",
}


def limited(limits: TenantConfig) -> bool:
    """Whether a tenant has any quota."""
    return any(getattr(limits, name) is not None for name in _SAID)


def asking(
    tenant: str,
    request: RequestId,
    question: Question,
    limits: TenantConfig,
    *,
    tokens: int,
    lease_s: float,
    key: str | None,
) -> AdmissionAsked:
    """To be let run, with ``tokens`` reserved and a place for ``lease_s``."""
    return AdmissionAsked(
        tenant=tenant,
        request_id=request.text,
        tokens=tokens,
        lease_ms=int(1000 * lease_s),
        requests_per_minute=limits.requests_per_minute,
        tokens_per_minute=limits.tokens_per_minute,
        concurrent_requests=limits.concurrent_requests,
        idempotency_key=None if key is None else _digest(key.encode()),
        fingerprint=None if key is None else _fingerprint(request.kind, question),
    )


def first_with_key(decision: Decision) -> RequestId | None:
    """The request that has the call's key already; ``None``: the call may run.

    Raises ApiError: a quota stands against it, or the key was used for something else.
    """
    match decision:
        case Admitted():
            return None
        case Duplicate(request_id, True):
            first = identifiers.parse(request_id)
            assert first is not None, "the log holds ids that a gateway made"
            return first
        case Duplicate():
            raise ApiError(
                422,
                "the Idempotency-Key was used with another body",
                code="idempotency_key_reused",
            )
        case Refused() as refused:
            raise _over_quota(refused)


def _over_quota(refused: Refused) -> ApiError:
    limit = f"{refused.allowed} {_SAID[refused.limit]}"
    if refused.retry_after_s is None:
        return invalid(
            f"the request may take more than the tenant's whole quota of {limit}: ask for fewer "
            "tokens",
            code="request_exceeds_quota",
            param="max_tokens",
        )
    return ApiError(
        429,
        f"the tenant's quota of {limit} is used up",
        code="rate_limit_exceeded",
        retry_after_s=refused.retry_after_s,
    )


def _fingerprint(kind: Kind, question: Question) -> str:
    """Of what is asked; not of how the answer is to be delivered."""
    return _digest(
        msgspec.json.encode(
            [
                kind,
                question.model,
                question.prompt,
                question.messages,
                question.sampling,
                question.user,
                question.metadata,
            ],
            order="deterministic",
        )
    )


def _digest(data: bytes) -> str:
    return blake2b(data, digest_size=16).hexdigest()
