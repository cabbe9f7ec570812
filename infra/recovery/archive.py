"""A backup into a place and out of it again, whole and, where a key is set, signed.

What is written is staged on this machine's disk first, in a folder for its owner alone: the
signature is over files. ``SHA256SUMS`` is put last, so a backup whose writing was cut off is none.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from infra.recovery import snapshot
from infra.recovery.errors import BackupRejected
from infra.recovery.places import Place
from infra.recovery.snapshot import MANIFEST, SUMS, Backup
from infra.registry.manifest import SIGNATURE, manifest_of
from infra.registry.signing import Signer, Verifier

T = TypeVar("T")


def check_free(place: Place) -> None:
    """That a place can take a new backup. Raises BackupRejected.

    What a writer that died left there is written over.
    """
    if SUMS in place.names():
        raise BackupRejected(
            f"{place.where} is a backup already, and backups do not change: name a new place"
        )


def write_backup(backup: Backup, place: Place, *, signer: Signer | None = None) -> None:
    """Write a backup and read it back. Raises BackupRejected, BackupStoreFailed."""
    check_free(place)
    files = {
        topic.file: snapshot.encode_records(backup.records[topic.name])
        for topic in backup.manifest.topics
    }
    files[MANIFEST] = snapshot.encode_manifest(backup.manifest)
    files[SUMS] = snapshot.encode_sums(files)
    with tempfile.TemporaryDirectory(prefix="feedloom-backup-") as name:
        folder = Path(name)
        for file, content in files.items():
            (folder / file).write_bytes(content)
        # The marker of a whole backup is its last file; the signature is part of the whole.
        order = [file for file in files if file != SUMS]
        if signer is not None:
            signer.sign(folder, folder / SIGNATURE)
            order.append(SIGNATURE)
        for file in (*order, SUMS):
            place.put(folder / file, file)
    if read_backup(place) != backup:
        raise BackupRejected(
            f"{place.where} gives back something else than was written: is somebody else writing "
            "a backup to the same place?"
        )


def read_backup(place: Place, *, verifier: Verifier | None = None) -> Backup:
    """Read a backup, every byte of it checked. With a ``verifier`` it must be signed.

    Raises:
        BackupRejected: not there, half-written, or a file is missing, cut short or changed; names
            it.
        ArtifactRejected: not signed, or not with the verifier's key.
        BackupStoreFailed: the place could not be read.
    """
    names = place.names()
    if SUMS not in names:
        raise BackupRejected(
            f"{place.where} has no {SUMS}: there is no backup, or its writing was never finished"
        )
    with tempfile.TemporaryDirectory(prefix="feedloom-backup-") as name:
        folder = Path(name)
        place.get(SUMS, folder / SUMS)
        sums = _of(place, lambda: snapshot.decode_sums((folder / SUMS).read_bytes()))
        for file, expected in sums.items():
            if file not in names:
                raise BackupRejected(f"{place.where}/{file} is missing")
            place.get(file, folder / file)
            if snapshot.sha256((folder / file).read_bytes()) != expected:
                raise BackupRejected(f"{place.where}/{file} has changed since it was written")
        if verifier is not None:
            if SIGNATURE in names:
                place.get(SIGNATURE, folder / SIGNATURE)
            verifier.verify(folder, manifest_of(folder), where=place.where)
        return _of(place, lambda: _decoded(folder, sums))


def is_signed(place: Place) -> bool:
    """Whether there is a signature, whosever."""
    return SIGNATURE in place.names()


def _decoded(folder: Path, sums: dict[str, str]) -> Backup:
    if MANIFEST not in sums:
        raise BackupRejected(f"{SUMS} does not list {MANIFEST}")
    manifest = snapshot.decode_manifest((folder / MANIFEST).read_bytes())
    snapshot.check_listed(sums, manifest)
    return Backup(
        manifest=manifest,
        records={
            topic.name: snapshot.decode_records((folder / topic.file).read_bytes(), topic)
            for topic in manifest.topics
        },
    )


def _of(place: Place, decode: Callable[[], T]) -> T:
    """What ``decode`` returns; its complaint says whose file it is about."""
    try:
        return decode()
    except BackupRejected as error:
        raise BackupRejected(f"{place.where}: {error}") from error
