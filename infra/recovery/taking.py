"""Takes a backup of a running platform. Writes nothing to it, and needs no group.

Topics are read one after the other, each whole, who refers before what is referred to
(``infra.recovery.scope``). So the backup is of no single moment, but closed: each rollout's
versions are in it, each version's parent, each batch's files, and the history of each setting.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from infra.contracts import codec
from infra.contracts.bus import Bus
from infra.contracts.catalogue import REGISTRY
from infra.contracts.errors import ContractError
from infra.contracts.events.model import ModelVersionPublished
from infra.recovery import scope
from infra.recovery.reading import TIMEOUT_S, read_whole
from infra.recovery.snapshot import (
    FORMAT,
    Backup,
    BackupManifest,
    SavedArtifact,
    SavedRecord,
    SavedTopic,
)
from infra.registry.manifest import bytes_of, digest_of


def take_backup(
    bus: Bus,
    *,
    cluster_id: str,
    topic_prefix: str,
    feedloom_version: str,
    now_ms: Callable[[], int],
    feedback: bool = False,
    timeout_s: float = TIMEOUT_S,
) -> Backup:
    """Read the control topics; with ``feedback`` also what the trainer learns from.

    Raises:
        ConfigurationError: a topic is missing, or may not be read.
        FatalError: a topic could not be read within ``timeout_s``.
    """
    began_at_ms = now_ms()
    topics, records = list[SavedTopic](), dict[str, Sequence[SavedRecord]]()
    for spec in scope.reading_order(feedback=feedback):
        whole = read_whole(bus, spec.name, timeout_s=timeout_s)
        records[spec.name] = whole.records
        topics.append(
            SavedTopic(
                name=spec.name,
                cleanup_policy=spec.cleanup_policy,
                ends=whole.ends,
                records=len(whole.records),
            )
        )
    return Backup(
        manifest=BackupManifest(
            format=FORMAT,
            feedloom_version=feedloom_version,
            cluster_id=cluster_id,
            topic_prefix=topic_prefix,
            began_at_ms=began_at_ms,
            ended_at_ms=now_ms(),
            topics=tuple(topics),
            artifacts=tuple(
                SavedArtifact(
                    model=version.model,
                    version=version.version,
                    uri=version.artifact_uri,
                    size=bytes_of(version.manifest),
                    manifest_sha256=digest_of(version.manifest),
                )
                for version in versions(records[REGISTRY.name])
            ),
        ),
        records=records,
    )


def versions(records: Iterable[SavedRecord]) -> list[ModelVersionPublished]:
    """Every version, once, in the order of publication; what cannot be read is passed over."""
    found: dict[tuple[str, str], ModelVersionPublished] = {}
    for record in records:
        try:
            event = codec.decode(record.value or b"", ModelVersionPublished)
        except ContractError:
            continue
        found.setdefault((event.model, event.version), event)
    return list(found.values())
