"""When consumer groups' offsets last moved, out of Kafka's own log of them.

Kafka's API does not tell when an offset was committed. Its log of offsets does, by the time of the
record that holds the commit, and is read back ``LOOK_BACK_S``; whoever may not read it is not told.

Source: Apache Kafka ``GroupCoordinatorService.partitionFor`` (which partition of
``__consumer_offsets`` is a group's) and ``OffsetCommitKey.json``.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from kafka import KafkaConsumer
from kafka import TopicPartition as KafkaPartition

from infra.kafka.connection import AccessRefused, client_options, permitted, reachable
from infra.kafka.offsets import OffsetsUnknown
from infra.settings import KafkaSettings

OFFSETS_TOPIC = "__consumer_offsets"
LOOK_BACK_S = 600.0
READ_TIMEOUT_S = 20.0


class Commit(NamedTuple):
    """A key of ``__consumer_offsets``: a group's offset on a partition."""

    group: str
    topic: str
    partition: int


class CommitTimes:
    """Follows the partitions of ``__consumer_offsets`` that hold the groups' offsets.

    ``groups`` with the deployment's prefix. Not for use by two threads at once.
    """

    def __init__(self, settings: KafkaSettings, groups: Sequence[str]) -> None:
        self._settings = settings
        self._groups = list(groups)
        self._consumer: Any = None
        self._refused = False
        self._moved: dict[Commit, tuple[bytes, int]] = {}

    def read(self) -> dict[Commit, int] | None:
        """When each offset moved within ``LOOK_BACK_S``; ``None`` if nobody may say.

        Raises KafkaError, and OffsetsUnknown when the log is longer than can be read in time.
        """
        if self._refused:
            return None
        try:
            with permitted(self._settings, f"read topic {OFFSETS_TOPIC}"):
                found = self._read()
        except AccessRefused:
            self._refused = True
            return None
        if not found:
            return None
        return {commit: at for commit, (_, at) in self._moved.items()}

    def close(self) -> None:
        """Let go of the connection; reading again looks back anew."""
        if self._consumer is not None:
            self._consumer.close()
            self._consumer = None

    def _read(self) -> bool:
        """Take in what was committed; ``False``: the topic is not there, or not to be seen."""
        if self._consumer is None and not self._open():
            self.close()
            return False
        assigned = self._consumer.assignment()
        ends = self._consumer.end_offsets(assigned)
        deadline = time.monotonic() + READ_TIMEOUT_S
        while any(self._consumer.position(one) < ends[one] for one in assigned):
            if time.monotonic() > deadline:
                raise OffsetsUnknown(f"{OFFSETS_TOPIC} was not read within {READ_TIMEOUT_S:.0f} s")
            for records in self._consumer.poll(timeout_ms=200).values():
                for record in records:
                    self._take(record.key, record.value, record.timestamp)
        return True

    def _open(self) -> bool:
        with reachable(self._settings):
            self._consumer = KafkaConsumer(
                **client_options(self._settings),
                client_id="feedloom-lag",
                enable_auto_commit=False,
                isolation_level="read_committed",
            )
        count = len(self._consumer.partitions_for_topic(OFFSETS_TOPIC) or ())
        if not count:
            return False
        assigned = sorted({offsets_partition(group, count) for group in self._groups})
        partitions = [KafkaPartition(OFFSETS_TOPIC, one) for one in assigned]
        self._consumer.assign(partitions)
        since = int(1000 * (time.time() - LOOK_BACK_S))
        found = self._consumer.offsets_for_times(dict.fromkeys(partitions, since))
        ends = self._consumer.end_offsets(partitions)
        for one in partitions:
            self._consumer.seek(one, ends[one] if found.get(one) is None else found[one].offset)
        return True

    def _take(self, key: bytes | None, value: bytes | None, timestamp_ms: int) -> None:
        commit = decode_commit(key)
        if commit is None or commit.group not in self._groups:
            return
        if value is None:
            self._moved.pop(commit, None)
            return
        # After its version, a value begins with the offset; one that is stored again has not moved.
        offset = value[2:10]
        known = self._moved.get(commit)
        if known is None or known[0] != offset:
            self._moved[commit] = offset, timestamp_ms


def offsets_partition(group: str, partitions: int) -> int:
    """Where a group's offsets are: Java's hash of its name, without the sign, modulo the count."""
    units = group.encode("utf-16-be")
    value = 0
    for unit in struct.unpack(f">{len(units) // 2}H", units):
        value = (31 * value + unit) & 0xFFFFFFFF
    signed = value - (1 << 32) if value >= 1 << 31 else value
    return 0 if signed == -(1 << 31) else abs(signed) % partitions


def decode_commit(key: bytes | None) -> Commit | None:
    """The key of a committed offset; ``None`` for what else the topic holds."""
    if key is None or len(key) < 2:
        return None
    (version,) = struct.unpack_from(">h", key)
    if version not in (0, 1):
        return None
    group, at = _text(key, 2)
    topic, at = _text(key, at)
    (partition,) = struct.unpack_from(">i", key, at)
    return Commit(group, topic, partition)


def _text(data: bytes, at: int) -> tuple[str, int]:
    (length,) = struct.unpack_from(">h", data, at)
    return data[at + 2 : at + 2 + length].decode(), at + 2 + length
