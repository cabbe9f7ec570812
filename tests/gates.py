"""Versions with files, those that have learnt from feedback, and what a gate said of them."""

from __future__ import annotations

from pathlib import Path

from infra.contracts.bus import Bus
from infra.contracts.events.model import (
    GateCheck,
    GateDecision,
    Lineage,
    ModelVersionPublished,
    OffsetRange,
)
from infra.registry.client import publish_version
from infra.registry.store import ArtifactStore

SPAN = OffsetRange(topic="feedback.examples", partition=0, start=0, end=1)


def decision(*, passed: bool, reason: str) -> GateDecision:
    """Of one check, for this reason."""
    check = GateCheck(
        name="forgetting", passed=passed, value=0, low=0, high=0, limit=0, samples=1, reason=reason
    )
    return GateDecision(passed=passed, confidence=0.95, checks=(check,))


def publish_files(
    bus: Bus,
    store: ArtifactStore,
    files: Path,
    *,
    model: str,
    version: str,
    gate: GateDecision | None,
    base: str | None,
) -> ModelVersionPublished:
    """A folder as a version; with a ``gate`` it has learnt from feedback, with a ``base`` it is an
    adapter.
    """
    uri, manifest = store.put(files, model=model, version=version)
    event = ModelVersionPublished(
        model=model,
        version=version,
        kind="full" if base is None else "lora",
        base=base,
        artifact_uri=uri,
        manifest=manifest,
        created_at_ms=0,
        lineage=Lineage(objective="sft", feedback=(SPAN,) if gate is not None else ()),
        gate=gate,
    )
    publish_version(bus.publisher(), event)
    return event
