"""What ``feedloom top`` shows at one moment, row by row. Knows not how it is found, nor drawn."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What ended in the window. Times in milliseconds; ``None`` where nothing was measured."""

    requests_per_s: float
    tokens_per_s: float
    failed: int
    ttft_p50_ms: float | None
    ttft_p95_ms: float | None


@dataclass(frozen=True, kw_only=True)
class WorkerRow:
    """A worker's newest report, and what it answered in the window.

    ``in_flight`` and ``queued`` are as of the report; ``None``: an older worker does not say.
    """

    worker_id: str
    state: str
    silent: bool
    age_s: float
    serving: tuple[str, ...]
    loaded: tuple[str, ...]
    requests_per_s: float
    tokens_per_s: float
    last_pause_ms: float | None
    failure: str | None
    in_flight: int | None
    queued: int | None


@dataclass(frozen=True, kw_only=True)
class LagRow:
    """A topic of a group."""

    group: str
    topic: str
    lag: int
    worst_partition: int | None
    worst_lag: int


@dataclass(frozen=True, kw_only=True)
class OwnerRow:
    """A client that reads request topics. ``unanswered``: queued and in flight, taken or not."""

    owner: str
    partitions: int
    unanswered: int
    unanswered_batch: int


@dataclass(frozen=True, kw_only=True)
class ArmRow:
    """A version that answers, with its share of traffic and what it answered in the window."""

    model: str
    version: str
    arm: str
    weight: float
    rollout: str
    requests: int
    tokens_per_s: float
    ttft_p50_ms: float | None


@dataclass(frozen=True, kw_only=True)
class GatewayRow:
    """A gateway's newest report."""

    gateway_id: str
    state: str
    silent: bool
    age_s: float
    url: str
    reply_partition: int


@dataclass(frozen=True, kw_only=True)
class TrainingRow:
    """What was trained of a model. ``rounds``: versions made of feedback, rejected ones too."""

    model: str
    rounds: int
    rejected: int
    newest: str
    stage: str
    age_s: float
    examples: int
    verdict: str


@dataclass(frozen=True, kw_only=True)
class Frame:
    """All that ``feedloom top`` shows at one moment; ``at_ms``: epoch."""

    at_ms: int
    window_s: int
    rates: Rates
    lag: tuple[LagRow, ...]
    owners: tuple[OwnerRow, ...]
    workers: tuple[WorkerRow, ...]
    arms: tuple[ArmRow, ...]
    gateways: tuple[GatewayRow, ...]
    training: tuple[TrainingRow, ...]
    dead_letters: dict[str, int]
    unreadable: int
