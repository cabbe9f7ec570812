"""How far consumer groups are behind, by partition, with who reads each and when it last moved.

Kafka's API does not tell when an offset was committed. Its log of offsets does, by the time of the
record that holds the commit, and is read back ``LOOK_BACK_S``; whoever may not read it is not told.

Source: Apache Kafka ``GroupCoordinatorService.partitionFor`` (which partition of
``__consumer_offsets`` is a group's) and ``OffsetCommitKey.json``.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from kafka import KafkaAdminClient, KafkaConsumer, OffsetSpec
from kafka import TopicPartition as KafkaPartition
from kafka.errors import KafkaError, for_code

from infra.kafka.connection import AccessRefused, client_options, permitted, reachable
from infra.kafka.lag import LagUnknown
from infra.settings import KafkaSettings

OFFSETS_TOPIC = "__consumer_offsets"
CHANGELOG = "-changelog"
"""Faust's tables: read to restore them, never committed."""
LOOK_BACK_S = 600.0
READ_TIMEOUT_S = 20.0


@dataclass(frozen=True, kw_only=True)
class PartitionLag:
    """One partition as one group has read it. Topic and group are without the deployment's prefix.

    ``committed``: the offset read next, ``None`` where nothing was committed; ``lag`` then counts
    from the beginning. ``owner``: the client that reads it now, ``""`` if none does. ``moved_ms``:
    epoch, when the committed offset last moved; ``None`` if that was longer ago than
    ``LOOK_BACK_S``, or is not known.
    """

    topic: str
    partition: int
    committed: int | None
    end: int
    lag: int
    owner: str = ""
    moved_ms: int | None = None


@dataclass(frozen=True, kw_only=True)
class GroupReport:
    """A group and what it reads. ``state`` is Kafka's (``Stable``, ``Empty``, ``Dead``, ...).

    ``times_known``: whether the log of offsets could be read.
    """

    group: str
    state: str
    members: int
    partitions: tuple[PartitionLag, ...]
    times_known: bool = True

    @property
    def lag(self) -> int:
        """Over all partitions."""
        return sum(one.lag for one in self.partitions)


class Commit(NamedTuple):
    """A key of ``__consumer_offsets``: a group's offset on a partition."""

    group: str
    topic: str
    partition: int


class GroupsLag:
    """Keeps its connections. Not for use by two threads at once.

    ``groups``: by name, without prefix, the topics that count for each even where it has committed
    nothing yet. ``optional``: those of them that are left out where the broker does not allow to
    ask. ``times``: also find out when offsets moved.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        groups: Mapping[str, Sequence[str]],
        *,
        optional: Collection[str] = (),
        times: bool = True,
    ) -> None:
        self._settings = settings
        self._prefix = settings.topic_prefix
        self._groups = {
            self._prefix + group: [self._prefix + topic for topic in topics]
            for group, topics in groups.items()
        }
        self._optional = {self._prefix + group for group in optional}
        self._times = _CommitTimes(settings, list(self._groups)) if times else None
        self._admin: Any = None

    def measure(self) -> list[GroupReport]:
        """Each group as it stands.

        Raises LagUnknown; ConfigurationError: no broker answers, or it does not allow this.
        """
        try:
            if self._admin is None:
                with reachable(self._settings):
                    self._admin = KafkaAdminClient(**client_options(self._settings))
            described, committed = self._ask()
            with permitted(self._settings, f"describe what {', '.join(self._groups)} read"):
                return self._measure(described, committed)
        except KafkaError as error:
            self.close()
            raise LagUnknown(f"{type(error).__name__}: {error}") from error

    def close(self) -> None:
        """Let go of the connections."""
        if self._admin is not None:
            self._admin.close()
            self._admin = None
        if self._times is not None:
            self._times.close()

    def _ask(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Members and committed offsets by group."""
        described: dict[str, Any] = {}
        committed: dict[str, Any] = {}
        for group in list(self._groups):
            try:
                with permitted(self._settings, f"describe group {group}"):
                    described |= self._admin.describe_groups([group])
                    committed |= self._admin.list_group_offsets({group: None})
            except AccessRefused:
                if group not in self._optional:
                    raise
                del self._groups[group]
        return described, committed

    def _measure(
        self, described: Mapping[str, Any], committed: Mapping[str, Any]
    ) -> list[GroupReport]:
        every = self._partitions({topic for topics in self._groups.values() for topic in topics})
        wanted = {
            group: sorted(
                {one for one in every if one.topic in topics}
                | set(committed.get(group) or ())
                | set(_owners(described.get(group, {})))
            )
            for group, topics in self._groups.items()
        }
        asked = sorted({one for partitions in wanted.values() for one in partitions})
        ends = self._offsets(asked, OffsetSpec.LATEST)
        starts = self._offsets(asked, OffsetSpec.EARLIEST)
        moved = None if self._times is None else self._times.read()
        reports = []
        for group, partitions in wanted.items():
            owners = _owners(described.get(group, {}))
            offsets = committed.get(group) or {}
            reports.append(
                GroupReport(
                    group=group.removeprefix(self._prefix),
                    state=str(described.get(group, {}).get("group_state") or "Dead"),
                    members=len(described.get(group, {}).get("members") or ()),
                    partitions=tuple(
                        self._one(
                            one,
                            None if offsets.get(one) is None else int(offsets[one].offset),
                            starts.get(one, 0),
                            ends[one],
                            owners.get(one, ""),
                            (moved or {}).get(Commit(group, one.topic, one.partition)),
                        )
                        for one in partitions
                        if one in ends
                    ),
                    times_known=moved is not None,
                )
            )
        return reports

    def _one(
        self,
        at: Any,
        committed: int | None,
        start: int,
        end: int,
        owner: str,
        moved_ms: int | None,
    ) -> PartitionLag:
        known = committed is not None and committed >= 0
        return PartitionLag(
            topic=at.topic.removeprefix(self._prefix),
            partition=at.partition,
            committed=committed if known else None,
            end=end,
            # What has been deleted is not behind any more.
            lag=max(0, end - max(start, committed if known and committed is not None else start)),
            owner=owner,
            moved_ms=moved_ms,
        )

    def _partitions(self, topics: Iterable[str]) -> list[Any]:
        found = []
        for described in self._admin.describe_topics(sorted(topics)):
            if described["error_code"]:
                raise for_code(described["error_code"])(described["name"])
            found += [
                KafkaPartition(described["name"], one["partition_index"])
                for one in described["partitions"]
            ]
        return found

    def _offsets(self, partitions: Sequence[Any], spec: Any) -> dict[Any, int]:
        if not partitions:
            return {}
        found = self._admin.list_partition_offsets(dict.fromkeys(partitions, spec))
        return {one: int(offset.offset) for one, offset in found.items()}


def _owners(described: Mapping[str, Any]) -> dict[Any, str]:
    """The client of each partition that is assigned now."""
    owners: dict[Any, str] = {}
    for member in described.get("members") or ():
        assignment = member.get("member_assignment") or {}
        if not isinstance(assignment, Mapping):
            continue
        for topic in assignment.get("assigned_partitions") or ():
            if topic["topic"].endswith(CHANGELOG):
                continue
            for partition in topic["partitions"]:
                owners[KafkaPartition(topic["topic"], partition)] = _named(member)
    return owners


def _named(member: Mapping[str, Any]) -> str:
    """Client, the beginning of the id that Kafka gave this one of its members, and host."""
    client, identity = str(member.get("client_id", "")), str(member.get("member_id", ""))
    own = identity.removeprefix(f"{client}-")[:8]
    return f"{client}-{own}@{str(member.get('client_host', '')).removeprefix('/')}"


class _CommitTimes:
    """Follows the partitions of ``__consumer_offsets`` that hold the groups' offsets."""

    def __init__(self, settings: KafkaSettings, groups: Sequence[str]) -> None:
        self._settings = settings
        self._groups = list(groups)
        self._consumer: Any = None
        self._refused = False
        self._moved: dict[Commit, tuple[bytes, int]] = {}

    def read(self) -> dict[Commit, int] | None:
        """When each offset moved within ``LOOK_BACK_S``; ``None`` if nobody may say.

        Raises KafkaError, and LagUnknown when the log is longer than can be read in time.
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
                raise LagUnknown(f"{OFFSETS_TOPIC} was not read within {READ_TIMEOUT_S:.0f} s")
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
