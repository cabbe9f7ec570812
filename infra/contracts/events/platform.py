"""Events of ``platform.*``: settings, API keys, and what workers and gateways say of themselves."""

from __future__ import annotations

from typing import Literal

import msgspec

from infra.contracts.events.base import Count, EpochMs, Event, Identifier

Role = Literal["caller", "feedback", "operator", "trainer"]


class ConfigChanged(Event, frozen=True, kw_only=True, tag="ConfigChanged"):
    """One dynamic setting. ``value`` is its JSON text."""

    key: Identifier
    value: str
    revision: Count
    changed_at_ms: EpochMs
    actor: str = ""
    reason: str = ""


class VersionSwitch(msgspec.Struct, frozen=True, kw_only=True):
    """One change of weights in a worker. ``pause_ms``: how long no token could be produced."""

    model: str
    from_version: str
    to_version: str
    switched_at_ms: EpochMs
    pause_ms: float
    in_flight: Count


class WorkerStatusReported(Event, frozen=True, kw_only=True, tag="WorkerStatusReported"):
    """What a worker serves now. Key: worker id. ``versions`` maps model to the serving version.

    ``loaded`` maps model to all that can serve there, an experiment's candidate among them.
    ``failure`` is the reason the last switch was refused, when it was. ``in_flight`` requests are
    being answered and ``queued`` ones were taken and wait for room in the engine; ``None`` from a
    worker older than these fields.
    """

    worker_id: Identifier
    state: Literal["starting", "ready", "draining", "stopped", "failed"]
    versions: dict[str, str]
    reported_at_ms: EpochMs
    last_switch: VersionSwitch | None = None
    failure: str | None = None
    loaded: dict[str, tuple[str, ...]] = msgspec.field(default_factory=dict)
    in_flight: Count | None = None
    queued: Count | None = None


class ApiKeyChanged(Event, frozen=True, kw_only=True, tag="ApiKeyChanged"):
    """An API key as it stands. Key: ``key_id``, which is the public beginning of the key itself.

    ``secret_hash``: scrypt of the secret part, with its parameters and salt; the key itself is
    nowhere. ``models``: those that it may use; empty: all. ``replaced_by``: the key that a rotation
    made; both are good until this one expires.
    """

    key_id: Identifier
    tenant: Identifier
    name: str
    roles: tuple[Role, ...]
    secret_hash: str
    created_at_ms: EpochMs
    expires_at_ms: EpochMs | None = None
    revoked_at_ms: EpochMs | None = None
    models: tuple[str, ...] = ()
    replaced_by: str | None = None
    actor: str = ""
    reason: str = ""


class GatewayStatusReported(Event, frozen=True, kw_only=True, tag="GatewayStatusReported"):
    """A gateway replica is there, and where it reads its answers. Key: gateway id."""

    gateway_id: Identifier
    state: Literal["ready", "stopped"]
    reply_partition: Count
    reported_at_ms: EpochMs
    url: str = ""
