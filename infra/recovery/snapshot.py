"""What a backup is made of, as bytes: records as JSON lines, a manifest, and their sums. Pure.

A folder of flat names: ``TOPIC.jsonl`` a topic, ``manifest.json``, and last ``SHA256SUMS`` over all
of these, in the form that ``sha256sum -c`` checks. Without that file it is no backup. Keys, values
and headers are base64, so any bytes come back as they were. Knows no broker and no store.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from infra.contracts.bus import Record
from infra.recovery.errors import BackupRejected

FORMAT = 1
MANIFEST = "manifest.json"
SUMS = "SHA256SUMS"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SUM = re.compile(r"([0-9a-f]{64})  (\S+)")


class SavedRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One record as it lay on the broker. ``value`` is ``None`` for a tombstone."""

    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()

    @property
    def content(self) -> tuple[bytes | None, bytes | None, tuple[tuple[str, bytes], ...]]:
        """What it says, wherever it lies and whenever it was written."""
        return self.key, self.value, self.headers

    @property
    def key_text(self) -> str:
        """The key as text; empty without one."""
        return (self.key or b"").decode("utf-8", "replace")


class SavedTopic(msgspec.Struct, frozen=True, kw_only=True):
    """One topic of a backup. ``ends``: by partition, the offset after the last that was read."""

    name: str
    cleanup_policy: str
    ends: tuple[int, ...]
    records: int

    @property
    def file(self) -> str:
        """Where its records are."""
        return f"{self.name}.jsonl"


class SavedArtifact(msgspec.Struct, frozen=True, kw_only=True):
    """Where a version's files are, which are not in the backup, and the digest of what they are."""

    model: str
    version: str
    uri: str
    size: int
    manifest_sha256: str


class BackupManifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a backup holds, whose it is and when it was taken.

    ``topics`` in the order in which they were read, from ``began_at_ms`` to ``ended_at_ms``.
    """

    format: int
    feedloom_version: str
    cluster_id: str
    topic_prefix: str
    began_at_ms: int
    ended_at_ms: int
    topics: tuple[SavedTopic, ...]
    artifacts: tuple[SavedArtifact, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Backup:
    """A whole backup. ``records``: by topic, each partition's in the order of their offsets."""

    manifest: BackupManifest
    records: Mapping[str, Sequence[SavedRecord]]

    def topic(self, name: str) -> SavedTopic | None:
        """What the manifest says of a topic."""
        return next((one for one in self.manifest.topics if one.name == name), None)

    def saved(self, topic: str) -> Sequence[SavedRecord]:
        """The records of a topic; none where an older release did not back it up."""
        return self.records.get(topic, ())


class _Envelope(msgspec.Struct):
    format: int = 0


_RECORDS = msgspec.json.Decoder(SavedRecord)
_ENCODER = msgspec.json.Encoder()


def saved(record: Record) -> SavedRecord:
    """A record of the bus."""
    return SavedRecord(
        partition=record.partition,
        offset=record.offset,
        timestamp_ms=record.timestamp_ms,
        key=record.key,
        value=record.value,
        headers=record.headers,
    )


def encode_records(records: Iterable[SavedRecord]) -> bytes:
    """A line each."""
    return _ENCODER.encode_lines(list(records))


def decode_records(data: bytes, topic: SavedTopic) -> tuple[SavedRecord, ...]:
    """The records of a topic's file. Raises BackupRejected: not what the manifest says."""
    try:
        found = tuple(_RECORDS.decode_lines(data))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BackupRejected(f"{topic.file} holds a line that is no record: {error}") from error
    if len(found) != topic.records:
        raise BackupRejected(
            f"{topic.file} holds {len(found)} records; the manifest says {topic.records}"
        )
    places = [(record.partition, record.offset) for record in found]
    if places != sorted(set(places)):
        raise BackupRejected(f"{topic.file} is out of order")
    for record in found:
        if not 0 <= record.offset < dict(enumerate(topic.ends)).get(record.partition, 0):
            raise BackupRejected(
                f"{topic.file} holds a record at {record.partition}/{record.offset}, which is not "
                "below an end that the manifest names"
            )
    return found


def encode_manifest(manifest: BackupManifest) -> bytes:
    """Indented, for people."""
    return msgspec.json.format(_ENCODER.encode(manifest), indent=2) + b"\n"


def decode_manifest(data: bytes) -> BackupManifest:
    """Raises BackupRejected: no manifest, or of a format that this release does not read."""
    try:
        version = msgspec.json.decode(data, type=_Envelope).format
        if version != FORMAT:
            raise BackupRejected(
                f"{MANIFEST} is of format {version}, and this release reads format {FORMAT}"
            )
        return msgspec.json.decode(data, type=BackupManifest)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BackupRejected(f"{MANIFEST} is no manifest of a backup: {error}") from error


def files_of(manifest: BackupManifest) -> list[str]:
    """Every file that ``SHA256SUMS`` must list."""
    return [*(topic.file for topic in manifest.topics), MANIFEST]


def encode_sums(files: Mapping[str, bytes]) -> bytes:
    """``SHA256SUMS`` over these contents."""
    return "".join(f"{sha256(files[name])}  {name}\n" for name in files).encode()


def decode_sums(data: bytes) -> dict[str, str]:
    """SHA-256 by file name. Raises BackupRejected: cut short, or not in the form of sha256sum."""
    text = data.decode("utf-8", "replace")
    if not text.endswith("\n"):
        raise BackupRejected(f"{SUMS} ends in the middle of a line, or is empty")
    found: dict[str, str] = {}
    # Not splitlines: that takes other characters for the end of a line, too.
    for line in text[:-1].split("\n"):
        parts = _SUM.fullmatch(line)
        # A name is a file beside this one, never a way out of its folder.
        if parts is None or _NAME.fullmatch(parts[2]) is None or parts[2] in found:
            raise BackupRejected(f"{SUMS} has a line that is no sum of a file: {line[:80]!r}")
        found[parts[2]] = parts[1]
    return found


def check_listed(sums: Mapping[str, str], manifest: BackupManifest) -> None:
    """That the sums are of the manifest's files and no others. Raises BackupRejected."""
    expected = files_of(manifest)
    for name in expected:
        if name not in sums:
            raise BackupRejected(f"{SUMS} does not list {name}")
    for name in sums:
        if name not in expected:
            raise BackupRejected(f"{SUMS} lists {name}, of which {MANIFEST} says nothing")


def sha256(data: bytes) -> str:
    """Hex."""
    return hashlib.sha256(data).hexdigest()
