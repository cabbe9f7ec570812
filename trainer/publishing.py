"""Publishes a trained version once, and lets it serve, or be tried, if it passed the gate."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path

from infra.contracts.bus import Publisher
from infra.contracts.config_sections import RolloutConfig
from infra.contracts.errors import ConfigurationError
from infra.contracts.events.model import (
    GateDecision,
    Lineage,
    ModelVersionPublished,
    RolloutChanged,
)
from infra.registry.client import publish_rollout, publish_version
from infra.registry.state import RegistryState
from infra.registry.store import ArtifactStore
from infra.registry.transitions import IllegalTransition, base_of, promoted, tried

log = logging.getLogger(__name__)

ACTOR = "feedloom/trainer"


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
    base: str | None = None,
) -> ModelVersionPublished:
    """Store the files in ``directory`` and publish them as the model's next version.

    With a ``base`` they are a LoRA adapter of that version.
    """
    known = published_from(state, model, lineage)
    if known is not None:
        log.info("%s@%s already holds this work", model, known.version)
        return known
    version = state.next_version(model)
    uri, manifest = store.put(directory, model=model, version=version)
    event = ModelVersionPublished(
        model=model,
        version=version,
        kind="full" if base is None else "lora",
        base=base,
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


def full_version(state: RegistryState, model: str, version: str | None) -> str:
    """The version of full weights that an adapter may go on: the one named, or that which serves.

    Raises ConfigurationError.
    """
    named = state.version(model, version) if version is not None else state.stable(model)
    if named is None:
        raise ConfigurationError(
            f"{model} has no version {version}" if version else f"no version of {model} serves"
        )
    if version is not None and named.kind == "lora":
        raise ConfigurationError(f"{model}@{version} is an adapter itself: name its base")
    found = base_of(named)
    assert found is not None
    return found


def roll_out(
    version: ModelVersionPublished,
    *,
    state: RegistryState,
    publisher: Publisher,
    reason: str,
    config: RolloutConfig | None = None,
) -> RolloutChanged | None:
    """Let a version serve: everybody, or whom ``config`` says, beside the stable one.

    Without ``config``, and where nothing is stable yet, it becomes the stable one. The rollout in
    which it is stable, or is tried; ``None``: in none, as the model is pinned, another version is
    being tried, or this one cannot be. The log says which.

    Raises IllegalTransition for a version that may not serve everybody, if it was to.
    """
    current, name = state.rollout(version.model), version.version
    if current is not None and current.stable == name:
        return current
    if current is not None and current.pinned:
        log.info("%s is pinned to %s: not rolled out", version.model, current.stable)
        return None
    now_ms = time.time_ns() // 1_000_000
    if current is None or config is None or config.strategy == "direct":
        event = promoted(state, version.model, name, now_ms=now_ms, actor=ACTOR, reason=reason)
    elif current.candidate == name:
        return current
    else:
        try:
            event = tried(
                state,
                version.model,
                name,
                mode=config.strategy,
                weight=config.weight,
                unit=config.unit,
                now_ms=now_ms,
                actor=ACTOR,
                reason=reason,
            )
        except IllegalTransition as error:
            log.warning(
                "no %s of %s@%s, which serves nobody yet: %s",
                *(config.strategy, version.model, name, error),
            )
            return None
    publish_rollout(publisher, event)
    state.apply(event)
    return event
