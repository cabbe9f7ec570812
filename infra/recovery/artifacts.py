"""The model files that a backup points at: whether they are there and whole, and where else.

A backup holds no weights. A version's files lie in the artifact store, under the URI that its
record names; the record cannot be changed afterwards, as a published version never changes. So a
store that had to move is named while the record is restored, or never.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import msgspec

from infra.contracts.catalogue import REGISTRY
from infra.contracts.events.model import ModelVersionPublished
from infra.recovery.errors import BackupRejected
from infra.recovery.snapshot import Backup, SavedRecord
from infra.recovery.taking import versions
from infra.registry.errors import ArtifactRejected, ArtifactStoreFailed
from infra.registry.store import HUB_SCHEME, ArtifactStore


def check_artifacts(
    backup: Backup, store: ArtifactStore
) -> Iterator[tuple[ModelVersionPublished, str | None]]:
    """Each version, and what is wrong with its files; every byte of them is read.

    What is in an object store is downloaded into the cache. A version on the hub is not looked at.
    """
    for version in versions(backup.saved(REGISTRY.name)):
        if version.artifact_uri.startswith(f"{HUB_SCHEME}://"):
            continue
        try:
            store.resolve(version)
        except (ArtifactRejected, ArtifactStoreFailed) as error:
            yield version, str(error)
        else:
            yield version, None


def relocated(backup: Backup, old: str, new: str) -> Backup:
    """The same with every artifact whose URI begins with ``old`` below ``new``.

    Only the URI in the record changes; digests, and so the check of what is loaded, stay. Raises
    BackupRejected where no version's URI begins so.
    """
    records = tuple(_moved(one, old, new) for one in backup.saved(REGISTRY.name))
    if records == tuple(backup.saved(REGISTRY.name)):
        raise BackupRejected(f"no version of this backup has its files below {old}")
    artifacts = tuple(
        msgspec.structs.replace(one, uri=_renamed(one.uri, old, new))
        for one in backup.manifest.artifacts
    )
    return dataclasses.replace(
        backup,
        manifest=msgspec.structs.replace(backup.manifest, artifacts=artifacts),
        records={**backup.records, REGISTRY.name: records},
    )


def _moved(record: SavedRecord, old: str, new: str) -> SavedRecord:
    try:
        # Not by the event's type: a field that this release does not know must stay.
        document = msgspec.json.decode(record.value or b"")
    except (msgspec.DecodeError, UnicodeDecodeError):
        return record
    uri = document.get("artifact_uri") if isinstance(document, dict) else None
    if not isinstance(uri, str) or not uri.startswith(old):
        return record
    document["artifact_uri"] = _renamed(uri, old, new)
    return msgspec.structs.replace(record, value=msgspec.json.encode(document))


def _renamed(uri: str, old: str, new: str) -> str:
    return new + uri.removeprefix(old) if uri.startswith(old) else uri
