"""Publishes a trained version once, and rolls it out if it passed the gate."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path

from infra.contracts.bus import Publisher
from infra.contracts.events import (
    GateDecision,
    Lineage,
    ModelVersionPublished,
    RolloutChanged,
)
from infra.registry.client import publish_rollout, publish_version
from infra.registry.state import RegistryState
from infra.registry.store import ArtifactStore
from infra.registry.transitions import promoted

log = logging.getLogger(__name__)


def published_from(
    state: RegistryState, model: str, lineage: Lineage
) -> ModelVersionPublished | None:
    """The version already trained from this parent and this feedback, if there is one.

    A trainer that died after publishing finds its own work here, and does not publish it twice. A
    rejected one does not count: somebody may try again with other settings.
    """
    if not lineage.feedback:
        return None  # nothing tells one import from another
    for version in state.versions(model):
        same_parent = version.lineage.parent == lineage.parent
        same_feedback = version.lineage.feedback == lineage.feedback
        if same_parent and same_feedback and not version.rejected:
            return version
    return None


def publish(
    directory: Path,
    *,
    model: str,
    lineage: Lineage,
    metrics: Mapping[str, float],
    store: ArtifactStore,
    state: RegistryState,
    publisher: Publisher,
    gate: GateDecision | None = None,
) -> ModelVersionPublished:
    """Store the files in ``directory`` and publish them as the model's next version."""
    known = published_from(state, model, lineage)
    if known is not None:
        log.info("%s@%s already holds this work", model, known.version)
        return known
    version = state.next_version(model)
    uri, manifest = store.put(directory, model=model, version=version)
    event = ModelVersionPublished(
        model=model,
        version=version,
        kind="full",
        artifact_uri=uri,
        manifest=manifest,
        created_at_ms=time.time_ns() // 1_000_000,
        lineage=lineage,
        metrics=dict(metrics),
        gate=gate,
    )
    publish_version(publisher, event)
    state.apply(event)
    log.info("published %s@%s%s", model, version, " as rejected" if event.rejected else "")
    return event


def roll_out(
    version: ModelVersionPublished, *, state: RegistryState, publisher: Publisher, reason: str
) -> RolloutChanged | None:
    """Make a version the stable one, unless it already is; ``None``: the model is pinned.

    Raises IllegalTransition for a version that its gate rejected.
    """
    current = state.rollout(version.model)
    if current is not None and current.stable == version.version:
        return current
    if current is not None and current.pinned:
        log.info("%s is pinned to %s: not rolled out", version.model, current.stable)
        return None
    event = promoted(
        state,
        version.model,
        version.version,
        now_ms=time.time_ns() // 1_000_000,
        actor="feedloom/trainer",
        reason=reason,
    )
    publish_rollout(publisher, event)
    state.apply(event)
    return event
