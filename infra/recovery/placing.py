"""What a restore writes where, by what the backup holds and what is there already. Pure.

A control topic is written anew, from offset 0 on and without gaps. So the record that belongs at an
offset is known, whoever asks: what is there is either the beginning of what the backup holds, and
the rest follows, or it is something else, and nothing is written. That is what makes a restore that
was cut off go on when it is run again, and a finished one do nothing.

``feedback.examples`` is placed by offset: the trainer's position is in the lineage of the versions,
as offsets of that topic (``trainer.intake``). On a topic that begins at 0 again it would take new
feedback for learnt until the topic is as long as the old one was. So records come to lie where they
lay, and what is missing in between, or all of it, is filled with tombstones of one key that names
no request; compaction takes them away again, and offsets stay.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec
from kafka.partitioner.default import murmur2

from infra.contracts.catalogue import EXAMPLES, TopicSpec
from infra.recovery.errors import RestoreRefused
from infra.recovery.reading import Whole
from infra.recovery.scope import compacts, expires
from infra.recovery.snapshot import SavedRecord, SavedTopic
from infra.recovery.taking import versions

FILLER_KEY = b"feedloom.recovery.filler"

Positions = Mapping[int, int]
"""By partition, the offset that is read next."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What one partition is to hold: ``records`` by offset, fillers elsewhere below ``end``."""

    spec: TopicSpec
    partition: int
    records: Mapping[int, SavedRecord]
    end: int
    filled_at_ms: int

    def at(self, offset: int) -> SavedRecord:
        """The record that belongs at an offset below ``end``."""
        found = self.records.get(offset)
        if found is not None:
            return found
        return SavedRecord(
            partition=self.partition,
            offset=offset,
            timestamp_ms=self.filled_at_ms,
            key=FILLER_KEY,
            value=None,
        )

    def complaint(self, present: Mapping[int, SavedRecord], end: int, *, now_ms: int) -> str | None:
        """Why what is there, up to ``end``, is not the beginning of this; ``None``: it is.

        Records that the broker takes away, by key or by age, may be missing.
        """
        where = f"{self.spec.name}/{self.partition}"
        if end > self.end:
            return f"{where} reaches to offset {end}, and what the backup has for it to {self.end}"
        for offset, record in present.items():
            if record.content != self.at(offset).content:
                return f"{where} holds a record at {offset} that is not the backup's"
        oldest_ms = now_ms - (self.spec.retention_ms or 0) if expires(self.spec) else 0
        newer: set[bytes | None] = set()
        for offset in reversed(range(end)):
            wanted = self.at(offset)
            gone = compacts(self.spec) and (wanted.value is None or wanted.key in newer)
            if offset not in present and not gone and wanted.timestamp_ms >= oldest_ms:
                return f"{where} held a record at {offset}, and it is gone"
            newer.add(wanted.key)
        return None


def dense(
    spec: TopicSpec, topic: SavedTopic, records: Iterable[SavedRecord], *, partitions: int
) -> list[Layout]:
    """A topic written anew. Another number of partitions is dealt by key, as producers do."""
    by: dict[int, list[SavedRecord]] = defaultdict(list)
    for record in records:
        number = record.partition
        if partitions != len(topic.ends):
            number = murmur2(record.key or b"") % 2**31 % partitions
        place = by[number]
        place.append(msgspec.structs.replace(record, partition=number, offset=len(place)))
    return [
        Layout(
            spec=spec,
            partition=number,
            records=dict(enumerate(by[number])),
            end=len(by[number]),
            filled_at_ms=0,
        )
        for number in range(partitions)
    ]


def in_place(
    spec: TopicSpec,
    topic: SavedTopic,
    records: Iterable[SavedRecord],
    positions: Positions,
    *,
    partitions: int,
    filled_at_ms: int,
) -> list[Layout]:
    """A topic whose records lie where they lay. Raises RestoreRefused: too few partitions."""
    if partitions != len(topic.ends):
        raise RestoreRefused(
            f"{spec.name} has {partitions} partitions here and had {len(topic.ends)}: its records "
            f"keep their places, so set FEEDLOOM_KAFKA__PARTITIONS={len(topic.ends)} before the "
            "topics are made"
        )
    by: dict[int, dict[int, SavedRecord]] = defaultdict(dict)
    for record in records:
        by[record.partition][record.offset] = record
    return [
        Layout(
            spec=spec,
            partition=number,
            records=by[number],
            end=max(end, positions.get(number, 0)),
            filled_at_ms=filled_at_ms,
        )
        for number, end in enumerate(topic.ends)
    ]


def trainer_positions(registry: Iterable[SavedRecord]) -> dict[int, int]:
    """By partition of ``feedback.examples``: the highest offset that any version's lineage names.

    Of every version, whether it serves or not: a trainer takes an unfinished round for one that it
    has published before if a version's lineage spans the same offsets.
    """
    found: dict[int, int] = {}
    for version in versions(registry):
        for span in version.lineage.feedback:
            if span.topic == EXAMPLES.name:
                found[span.partition] = max(found.get(span.partition, 0), span.end)
    return found


def missing(spec: TopicSpec, records: Sequence[SavedRecord], here: Whole) -> list[SavedRecord]:
    """What a merge adds: of a compacted topic the records of keys that have no value here, of
    another the records that are not here.
    """
    if compacts(spec):
        living = newest(here.records)
        wanted = newest(records)
        return [
            record
            for record in records
            if living.get(record.key) is None and wanted.get(record.key) is not None
        ]
    there = Counter((one.content, one.timestamp_ms) for one in here.records)
    found = []
    for record in records:
        identity = record.content, record.timestamp_ms
        if there[identity]:
            there[identity] -= 1
        else:
            found.append(record)
    return found


def newest(records: Iterable[SavedRecord]) -> dict[bytes | None, bytes | None]:
    """The newest value of each key, as compaction would leave it."""
    return {record.key: record.value for record in records}
