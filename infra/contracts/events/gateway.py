"""Events of ``gateway.*``: admissions, uploaded files, and batches."""

from __future__ import annotations

from typing import Literal

import msgspec

from infra.contracts.events.base import Count, EpochMs, Event, Identifier

BatchStatus = Literal[
    "validating",
    "failed",
    "in_progress",
    "finalizing",
    "completed",
    "expired",
    "cancelling",
    "cancelled",
]


class AdmissionAsked(Event, frozen=True, kw_only=True, tag="AdmissionAsked"):
    """A gateway wants to run a request of a tenant. The order of these decides which may.

    ``tokens`` are reserved until the request ends; it counts as running for ``lease_ms`` at most.
    The limits are the tenant's as the gateway knows them; ``None``: none. ``idempotency_key`` and
    ``fingerprint`` are digests, of the caller's key and of what it asked.
    """

    tenant: Identifier
    request_id: Identifier
    tokens: Count
    lease_ms: Count
    requests_per_minute: Count | None = None
    tokens_per_minute: Count | None = None
    concurrent_requests: Count | None = None
    idempotency_key: str | None = None
    fingerprint: str | None = None


class AdmissionEnded(Event, frozen=True, kw_only=True, tag="AdmissionEnded"):
    """An admitted request is over. ``tokens``: what it used; ``None``: what was reserved."""

    tenant: Identifier
    request_id: Identifier
    tokens: Count | None = None


class FileChanged(Event, frozen=True, kw_only=True, tag="FileChanged"):
    """A file that a tenant uploaded, or that a batch wrote. Its bytes are in the file store."""

    file_id: Identifier
    tenant: Identifier
    filename: str
    purpose: str
    size: Count
    created_at_ms: EpochMs
    deleted_at_ms: EpochMs | None = None


class BatchError(msgspec.Struct, frozen=True, kw_only=True):
    """What is wrong with a line of a batch's input; ``line`` counts from 1."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


class BatchChanged(Event, frozen=True, kw_only=True, tag="BatchChanged"):
    """A batch as it stands; the fields are those of OpenAI's batch object. Key: batch id.

    ``revision`` rises with each change. Moments that were not reached are ``None``.
    """

    batch_id: Identifier
    tenant: Identifier
    revision: Count
    status: BatchStatus
    endpoint: str
    input_file_id: Identifier
    created_at_ms: EpochMs
    expires_at_ms: EpochMs
    subject: str = ""
    models: tuple[str, ...] = ()
    output_file_id: str | None = None
    error_file_id: str | None = None
    total: Count = 0
    completed: Count = 0
    failed: Count = 0
    in_progress_at_ms: EpochMs | None = None
    finalizing_at_ms: EpochMs | None = None
    completed_at_ms: EpochMs | None = None
    failed_at_ms: EpochMs | None = None
    expired_at_ms: EpochMs | None = None
    cancelling_at_ms: EpochMs | None = None
    cancelled_at_ms: EpochMs | None = None
    errors: tuple[BatchError, ...] = ()
    metadata: dict[str, str] = msgspec.field(default_factory=dict)
