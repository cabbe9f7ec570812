"""Which requests a tenant's quota admits, and which idempotency keys are taken. Pure.

A fold of the admission log. Whoever folds the same records comes to the same decisions, so limits
hold over all replicas without any of them being in charge: a replica writes what it wants to admit
and does as the log's order decides. Times are those of the records, which the broker sets; limits
travel within the records, since replicas may learn of a new setting one after the other.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from infra.contracts.events.gateway import AdmissionAsked, AdmissionEnded

WINDOW_MS = 60_000
KEYS_MS = 24 * 3_600_000
KEYS_PER_TENANT = 10_000
"""Idempotency keys that are remembered; the oldest are forgotten first."""
CONCURRENT_RETRY_S = 1.0

LimitName = Literal["requests_per_minute", "tokens_per_minute", "concurrent_requests"]


@dataclass(frozen=True, slots=True)
class Admitted:
    """The request may run."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A limit stands against it. ``retry_after_s``: ``None`` if waiting does not help."""

    limit: LimitName
    allowed: int
    retry_after_s: float | None


@dataclass(frozen=True, slots=True)
class Duplicate:
    """Its idempotency key is taken by ``request_id``; ``same``: for the same body."""

    request_id: str
    same: bool


Decision = Admitted | Refused | Duplicate


@dataclass(slots=True)
class _Entry:
    at_ms: int
    tokens: int
    request_id: str


@dataclass(slots=True)
class _Tenant:
    recent: deque[_Entry] = field(default_factory=deque)
    by_id: dict[str, _Entry] = field(default_factory=dict)
    tokens: int = 0
    leases: dict[str, int] = field(default_factory=dict)
    keys: OrderedDict[str, tuple[int, str, str]] = field(default_factory=OrderedDict)
    """Idempotency key to when it was taken, by which request, for which body."""


class AdmissionLedger:
    """The state of all tenants. One partition's records must come in their order."""

    def __init__(self) -> None:
        self._tenants: dict[str, _Tenant] = {}

    def apply(self, event: AdmissionAsked | AdmissionEnded, at_ms: int) -> Decision | None:
        """Take in a record written at ``at_ms``; the decision, if it asked for one."""
        tenant = self._tenants.setdefault(event.tenant, _Tenant())
        _forget(tenant, at_ms)
        if isinstance(event, AdmissionAsked):
            return _decide(tenant, event, at_ms)
        tenant.leases.pop(event.request_id, None)
        entry = tenant.by_id.get(event.request_id)
        if entry is not None and event.tokens is not None:
            tenant.tokens += event.tokens - entry.tokens
            entry.tokens = event.tokens
        return None

    def sweep(self, now_ms: int) -> None:
        """Forget what is over, of tenants that no longer ask. Changes no decision."""
        for name, tenant in list(self._tenants.items()):
            _forget(tenant, now_ms)
            if not (tenant.recent or tenant.leases or tenant.keys):
                del self._tenants[name]


def _decide(tenant: _Tenant, event: AdmissionAsked, at_ms: int) -> Decision:
    key = event.idempotency_key
    if key is not None and (taken := tenant.keys.get(key)) is not None:
        _, request_id, fingerprint = taken
        return Duplicate(request_id, fingerprint == (event.fingerprint or ""))
    refused = _over(tenant, event, at_ms)
    if refused is not None:
        return refused
    entry = _Entry(at_ms, event.tokens, event.request_id)
    tenant.recent.append(entry)
    tenant.by_id[event.request_id] = entry
    tenant.tokens += event.tokens
    tenant.leases[event.request_id] = at_ms + event.lease_ms
    if key is not None:
        tenant.keys[key] = (at_ms, event.request_id, event.fingerprint or "")
        if len(tenant.keys) > KEYS_PER_TENANT:
            tenant.keys.popitem(last=False)
    return Admitted()


def _over(tenant: _Tenant, event: AdmissionAsked, at_ms: int) -> Refused | None:
    """The limit that stands against it for longest."""
    refusals = list(_refusals(tenant, event, at_ms))
    return max(refusals, key=_wait, default=None)


def _wait(refused: Refused) -> float:
    return math.inf if refused.retry_after_s is None else refused.retry_after_s


def _refusals(tenant: _Tenant, event: AdmissionAsked, at_ms: int) -> Iterator[Refused]:
    limit = event.tokens_per_minute
    if limit is not None and tenant.tokens + event.tokens > limit:
        wait = None if event.tokens > limit else _until_room(tenant, event.tokens, limit, at_ms)
        yield Refused("tokens_per_minute", limit, wait)
    limit = event.requests_per_minute
    if limit is not None and len(tenant.recent) >= limit:
        wait = _seconds_left(tenant.recent[-limit], at_ms) if limit else None
        yield Refused("requests_per_minute", limit, wait)
    limit = event.concurrent_requests
    if limit is not None and len(tenant.leases) >= limit:
        yield Refused("concurrent_requests", limit, CONCURRENT_RETRY_S)


def _until_room(tenant: _Tenant, tokens: int, limit: int, at_ms: int) -> float:
    """Seconds until enough of the last minute's tokens are a minute old."""
    held = tenant.tokens
    for entry in tenant.recent:
        held -= entry.tokens
        if held + tokens <= limit:
            return _seconds_left(entry, at_ms)
    return WINDOW_MS / 1000


def _seconds_left(entry: _Entry, at_ms: int) -> float:
    return max(0, entry.at_ms + WINDOW_MS - at_ms) / 1000


def _forget(tenant: _Tenant, now_ms: int) -> None:
    while tenant.recent and tenant.recent[0].at_ms <= now_ms - WINDOW_MS:
        entry = tenant.recent.popleft()
        tenant.tokens -= entry.tokens
        if tenant.by_id.get(entry.request_id) is entry:
            del tenant.by_id[entry.request_id]
    for request_id in [one for one, until in tenant.leases.items() if until <= now_ms]:
        del tenant.leases[request_id]
    while tenant.keys:
        taken_ms, _, _ = next(iter(tenant.keys.values()))
        if taken_ms > now_ms - KEYS_MS:
            break
        tenant.keys.popitem(last=False)
