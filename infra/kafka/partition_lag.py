"""How far consumer groups are behind, by partition, with who reads each and when it last moved.

It asks about all that a group reads. One topic's total alone: ``infra.kafka.lag``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kafka import TopicPartition as KafkaPartition

from infra.kafka.commit_times import Commit, CommitTimes
from infra.kafka.connection import AccessRefused, permitted
from infra.kafka.offsets import OffsetsClient, behind, committed_offset
from infra.settings import KafkaSettings

CHANGELOG = "-changelog"
"""Ends the names of Faust's tables: read to restore them, never committed."""


@dataclass(frozen=True, kw_only=True)
class PartitionLag:
    """One partition as one group has read it. Topic and group are without the deployment's prefix.

    ``committed``: the offset read next, ``None`` where nothing was committed; ``lag`` then counts
    from the beginning. ``owner``: the client that reads it now, ``""`` if none does. ``moved_ms``:
    epoch, when the committed offset last moved; ``None`` if that was longer ago than is looked
    back (``infra.kafka.commit_times``), or is not known.
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


class GroupsLag(OffsetsClient):
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
        super().__init__(settings)
        self._groups = {
            self._prefix + group: [self._prefix + topic for topic in topics]
            for group, topics in groups.items()
        }
        self._optional = {self._prefix + group for group in optional}
        self._times = CommitTimes(settings, list(self._groups)) if times else None

    def measure(self) -> list[GroupReport]:
        """Each group as it stands.

        Raises OffsetsUnknown; ConfigurationError: no broker answers, or it does not allow this.
        """
        with self._connected():
            described, committed = self._ask()
            with permitted(self._settings, f"describe what {', '.join(self._groups)} read"):
                return self._measure(described, committed)

    def close(self) -> None:
        """Let go of the connections."""
        super().close()
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
        ends, starts = self._ends(asked), self._starts(asked)
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
                            committed_offset(offsets.get(one)),
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
        return PartitionLag(
            topic=at.topic.removeprefix(self._prefix),
            partition=at.partition,
            committed=committed,
            end=end,
            lag=behind(start, end, committed),
            owner=owner,
            moved_ms=moved_ms,
        )


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
