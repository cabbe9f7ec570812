"""Reads a topic whole, as of one moment, compaction or not.

Up to the ends that the topic has when reading begins, a topic that is compacted meanwhile would
lose keys: a record is taken away once a newer one of its key lies beyond those ends. So reading
goes on until the ends have not moved since everything below them was read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from time import monotonic

from infra.contracts.bus import Bus, Reader, Record, TopicPartition, unread
from infra.contracts.errors import FatalError
from infra.recovery.snapshot import SavedRecord, saved

POLL_S = 0.2
AT_ONCE = 5_000
TIMEOUT_S = 600.0


@dataclass(frozen=True, kw_only=True)
class Whole:
    """A topic as it was at one moment. ``ends`` by partition; ``records`` by partition, offset."""

    ends: tuple[int, ...]
    records: tuple[SavedRecord, ...]

    def partition(self, number: int) -> dict[int, SavedRecord]:
        """The records of one partition by offset."""
        return {one.offset: one for one in self.records if one.partition == number}


def read_whole(bus: Bus, topic: str, *, timeout_s: float = TIMEOUT_S) -> Whole:
    """Every record of a topic.

    Raises:
        ConfigurationError: there is no such topic, or it may not be read.
        FatalError: it was not read to an end that stands still within ``timeout_s``.
    """
    deadline = monotonic() + timeout_s
    reader, records = bus.reader([topic]), list[Record]()
    try:
        # By the reader itself: to connect takes longer than to read such a topic.
        ends = reader.seek_since(0)
        for where in ends:
            # Not where the first record with a moment lies: from the very beginning.
            reader.seek(where, 0)
        while True:
            while unread(reader, ends):
                if monotonic() > deadline:
                    raise FatalError(
                        f"{topic} could not be read to an end that stands still within "
                        f"{timeout_s:.0f} s"
                    )
                records.extend(reader.poll(POLL_S, AT_ONCE))
            before, ends = ends, _present_ends(reader, ends)
            if ends == before:
                break
    finally:
        reader.close()
    return Whole(ends=ends_of(ends), records=_in_order(records))


def _present_ends(reader: Reader, known: Iterable[TopicPartition]) -> Mapping[TopicPartition, int]:
    """Where the partitions end now; the reader reads on where it was."""
    at = {where: reader.position(where) for where in known}
    ends = reader.seek_since(0)
    for where, offset in at.items():
        reader.seek(where, offset)
    return ends


def ends_of(ends: Mapping[TopicPartition, int]) -> tuple[int, ...]:
    """By partition."""
    by_partition = {where.partition: end for where, end in ends.items()}
    return tuple(by_partition[number] for number in range(len(by_partition)))


def _in_order(records: Sequence[Record]) -> tuple[SavedRecord, ...]:
    ordered = sorted(records, key=lambda record: (record.partition, record.offset))
    return tuple(saved(record) for record in ordered)
