"""What the platform's views say, as the console's tables show it. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import msgspec

from infra.contracts.events.model import ModelVersionPublished, RolloutChanged, RolloutDecided
from infra.contracts.events.platform import WorkerStatusReported
from infra.registry.state import RegistryState
from infra.registry.transitions import reasons, refusal, stage_of
from infra.registry.workers import SILENT_MS
from infra.rollouts.policy import breached, judged

MEASURES = {
    "heldout_loss": ("heldout_loss_after",),
    "bits_per_byte": ("heldout_bits_per_byte_after",),
    "win_rate": ("win_rate",),
}
DECISIONS = 8


def workers(reports: Iterable[WorkerStatusReported], *, now_ms: int) -> list[dict[str, Any]]:
    """Each worker's newest report, by id. ``silent``: it should have been heard of since."""
    return [
        {
            "worker_id": one.worker_id,
            "state": one.state,
            "silent": one.state in ("starting", "ready")
            and now_ms - one.reported_at_ms > SILENT_MS,
            "age_ms": max(0, now_ms - one.reported_at_ms),
            "versions": one.versions,
            "loaded": {model: list(names) for model, names in one.loaded.items()},
            "failure": one.failure,
            "last_switch": msgspec.to_builtins(one.last_switch),
        }
        for one in sorted(reports, key=lambda one: one.worker_id)
    ]


def models(state: RegistryState, allowed: Collection[str]) -> list[str]:
    """Those with a version that the caller may use; ``allowed`` empty: all."""
    return [name for name in state.models() if not allowed or name in allowed]


def versions(state: RegistryState, names: Iterable[str]) -> list[dict[str, Any]]:
    """Every version of the models, the newest of each first."""
    return [
        _version(state, version) for name in names for version in reversed(state.versions(name))
    ]


def _version(state: RegistryState, version: ModelVersionPublished) -> dict[str, Any]:
    lineage, gate = version.lineage, version.gate
    return {
        "model": version.model,
        "version": version.version,
        "kind": version.kind,
        "base": version.base,
        "parent": lineage.parent,
        "created_at_ms": version.created_at_ms,
        "stage": stage_of(state, version),
        "may_not_serve": refusal(version),
        "metrics": version.metrics,
        **{
            name: next((version.metrics[key] for key in keys if key in version.metrics), None)
            for name, keys in MEASURES.items()
        },
        "gate": None
        if gate is None
        else {
            "passed": gate.passed,
            "confidence": gate.confidence,
            "reason": reasons(gate),
            "checks": msgspec.to_builtins(gate.checks),
        },
        "lineage": {
            "objective": lineage.objective,
            "feedback_examples": lineage.feedback_examples,
            "feedback": [
                f"{one.topic}/{one.partition}: {one.start} to {one.end}" for one in lineage.feedback
            ],
            "replay_fraction": lineage.replay_fraction,
            "replay_shards": len(lineage.replay_shards),
            "steps": lineage.steps,
            "seed": lineage.seed,
            "adapter_rank": lineage.adapter_rank,
            "code_version": lineage.code_version,
        },
        "signed": version.signature is not None,
        "files": len(version.manifest),
        "bytes": sum(file.size for file in version.manifest),
    }


def rollout(current: RolloutChanged | None, decisions: Iterable[RolloutDecided]) -> dict[str, Any]:
    """A rollout as it stands, and what was decided of it of late, the newest first."""
    shown = list(decisions)
    experiment = current.experiment if current is not None else ""
    of_this = (one for one in shown if experiment and one.experiment == experiment)
    return {
        "rollout": msgspec.to_builtins(current),
        "figures": _decision(next(of_this, None)),
        "decisions": [_decision(one) for one in shown[:DECISIONS]],
    }


def _decision(event: RolloutDecided | None) -> dict[str, Any] | None:
    if event is None:
        return None
    found: dict[str, Any] = msgspec.to_builtins(event)
    for shown, check in zip(found["checks"], event.checks, strict=True):
        shown |= {"judged": judged(check), "breached": breached(check)}
    return found
