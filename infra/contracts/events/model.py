"""Events of ``model.*``: versions, which of them serve, and what is decided of candidates."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from infra.contracts.events.base import Count, EpochMs, Event, Identifier

ModelKind = Literal["full", "lora"]
Unit = Literal["user", "tenant", "conversation"]
Verdict = Literal["promote", "hold", "rollback"]


class ArtifactFile(msgspec.Struct, frozen=True, kw_only=True):
    """One file of an artifact: ``path`` relative to its root, size in bytes, SHA-256 in hex."""

    path: str
    size: Count
    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]


class OffsetRange(msgspec.Struct, frozen=True, kw_only=True):
    """Feedback consumed from one partition: ``start`` inclusive, ``end`` exclusive."""

    topic: str
    partition: Count
    start: Count
    end: Count


class Lineage(msgspec.Struct, frozen=True, kw_only=True):
    """Where a version came from. ``feedback`` is also the trainer's durable position.

    ``objective``: what the feedback was trained on with, such as ``sft+dpo``. ``replay_sha256``
    has one entry for each of ``replay_shards``. ``adapter_rank``: of the LoRA adapter that was
    trained and merged; 0 where all weights were.
    """

    parent: str | None = None
    objective: str = "pretrain"
    feedback: tuple[OffsetRange, ...] = ()
    feedback_examples: Count = 0
    replay_shards: tuple[str, ...] = ()
    replay_fraction: float = 0.0
    seed: int = 0
    steps: Count = 0
    code_version: str = ""
    replay_sha256: tuple[str, ...] = ()
    adapter_rank: Count = 0


class GateCheck(msgspec.Struct, frozen=True, kw_only=True):
    """One measure of a version, most of them beside its parent.

    ``low`` to ``high`` is the confidence interval of ``value``, from ``samples``; ``limit`` is
    what it was held against, as ``reason`` says in words.
    """

    name: str
    passed: bool
    value: float
    low: float
    high: float
    limit: float
    samples: Count
    reason: str


class GateDecision(msgspec.Struct, frozen=True, kw_only=True):
    """Whether a version may serve: it passed every check. ``confidence`` is of the intervals."""

    passed: bool
    confidence: float
    checks: tuple[GateCheck, ...] = ()


class ModelVersionPublished(Event, frozen=True, kw_only=True, tag="ModelVersionPublished"):
    """An immutable model version. Key ``model/version``; ``artifact_uri`` holds its files.

    One whose ``gate`` did not pass is rejected. Without a gate nobody has measured it. ``base``:
    the full version of the same model that a LoRA adapter goes on, and on no other.
    """

    model: Identifier
    version: Identifier
    kind: ModelKind
    artifact_uri: str
    manifest: tuple[ArtifactFile, ...]
    created_at_ms: EpochMs
    lineage: Lineage = Lineage()
    metrics: dict[str, float] = msgspec.field(default_factory=dict)
    signature: str | None = None
    gate: GateDecision | None = None
    base: str | None = None

    @property
    def rejected(self) -> bool:
        """Whether the gate refused it."""
        return self.gate is not None and not self.gate.passed


class RolloutChanged(Event, frozen=True, kw_only=True, tag="RolloutChanged"):
    """Which versions of a model serve. ``candidate_weight`` is a fraction of traffic, 0 to 1.

    In a ``canary`` the candidate answers that fraction; in a ``shadow`` it answers a copy of it,
    which nobody is shown. ``experiment`` names the comparison and salts the draw of its requests,
    which is by ``unit``; it began at ``started_at_ms``. ``switch_policy``: ``keep`` continues
    requests in flight over a switch of full weights, ``drain`` lets them finish first.
    ``revision`` rises by one with each change; readers ignore older ones. ``retired``: versions
    that were stable before, the newest last; ``rolled_back``: those that were taken out of service.
    ``pinned``: nothing is promoted until somebody takes the pin off.
    """

    model: Identifier
    revision: Count
    stable: Identifier
    changed_at_ms: EpochMs
    candidate: str | None = None
    candidate_weight: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.0
    state: Literal["steady", "canary", "shadow", "rolled_back"] = "steady"
    switch_policy: Literal["keep", "drain"] = "keep"
    actor: str = ""
    reason: str = ""
    retired: tuple[str, ...] = ()
    rolled_back: tuple[str, ...] = ()
    pinned: bool = False
    experiment: str = ""
    unit: Unit = "user"
    started_at_ms: EpochMs = 0


class ArmFigures(msgspec.Struct, frozen=True, kw_only=True):
    """What one arm of an experiment has shown so far.

    ``outcome`` is the mean of the deciding metric over ``units`` that gave ``labels`` labels. Times
    are geometric means, in milliseconds; ``edit_share`` is the mean share of an answer that people
    changed when they edited it; ``output_tokens`` a mean over answers.
    """

    version: Identifier
    requests: Count = 0
    errors: Count = 0
    units: Count = 0
    labels: Count = 0
    ups: Count = 0
    downs: Count = 0
    edits: Count = 0
    outcome: float | None = None
    edit_share: float | None = None
    output_tokens: float | None = None
    ttft_ms: float | None = None
    itl_ms: float | None = None


class RolloutDecided(Event, frozen=True, kw_only=True, tag="RolloutDecided"):
    """What the figures of a canary say should become of its candidate, and why.

    ``revision``: of the rollout that was looked at. ``look`` counts the looks of one experiment.
    Of ``checks``, each beside its limit, those that did not pass stand against a promotion.
    ``acted``: whether a change of the rollout follows; without it people decide.
    """

    model: Identifier
    experiment: Identifier
    revision: Count
    verdict: Verdict
    reason: str
    decided_at_ms: EpochMs
    look: Count
    confidence: float
    stable: ArmFigures
    candidate: ArmFigures
    checks: tuple[GateCheck, ...] = ()
    alarms: tuple[str, ...] = ()
    acted: bool = False
