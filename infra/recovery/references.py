"""Names in a backup whose referent is not in it. Pure.

A backup that was taken from a sound platform has none: they are a sign of a fault on the platform
itself, and a restore brings them back as they were.
"""

from __future__ import annotations

from typing import TypeVar

from infra.contracts import codec
from infra.contracts.catalogue import BATCHES, FILES, REGISTRY, ROLLOUTS
from infra.contracts.errors import ContractError
from infra.contracts.events.base import Event
from infra.contracts.events.gateway import BatchChanged, FileChanged
from infra.contracts.events.model import RolloutChanged
from infra.recovery.placing import newest
from infra.recovery.snapshot import Backup
from infra.recovery.taking import versions

E = TypeVar("E", bound=Event)


def dangling(backup: Backup) -> list[str]:
    """A line a name: rollouts' versions, versions' parents and bases, the input of open batches."""
    published = versions(backup.saved(REGISTRY.name))
    known = {(one.model, one.version) for one in published}
    lines = [
        f"the rollout of {rollout.model} names {version}, which is no version"
        for rollout in _standing(backup, ROLLOUTS.name, RolloutChanged)
        for version in (rollout.stable, rollout.candidate)
        if version is not None and (rollout.model, version) not in known
    ]
    lines += [
        f"{one.model}@{one.version} comes of {version}, which is no version"
        for one in published
        for version in (one.lineage.parent, one.base)
        if version is not None and (one.model, version) not in known
    ]
    files = {
        one.file_id
        for one in _standing(backup, FILES.name, FileChanged)
        if one.deleted_at_ms is None
    }
    lines += [
        f"{batch.batch_id} reads {batch.input_file_id}, which is no file"
        for batch in _standing(backup, BATCHES.name, BatchChanged)
        if batch.status in ("validating", "in_progress") and batch.input_file_id not in files
    ]
    return lines


def _standing(backup: Backup, topic: str, kind: type[E]) -> list[E]:
    found = []
    for value in newest(backup.saved(topic)).values():
        try:
            found.append(codec.decode(value or b"", kind))
        except ContractError:
            continue
    return found
