"""How many records of one topic a group has not committed yet: a number, and nothing besides.

It asks for that group's offsets on that topic alone, so that whoever may not see what else the
group reads, such as a gateway, may measure it. By partition: ``infra.kafka.partition_lag``.
"""

from __future__ import annotations

from infra.kafka.connection import permitted
from infra.kafka.offsets import OffsetsClient, behind, committed_offset
from infra.settings import KafkaSettings


class GroupLag(OffsetsClient):
    """Keeps one admin connection. Not for use by two threads at once.

    ``group`` and ``topic`` as settings and catalogue name them; the deployment's prefix is added
    to both, as workers do.
    """

    def __init__(self, settings: KafkaSettings, *, group: str, topic: str) -> None:
        super().__init__(settings)
        self._group = self._prefix + group
        self._topic = self._prefix + topic

    def measure(self) -> int:
        """Records that the group has not committed yet, over all partitions.

        A partition where it has committed nothing counts from its beginning.

        Raises OffsetsUnknown; ConfigurationError: no broker answers, or it does not allow this.
        """
        action = f"describe group {self._group} and {self._topic}"
        with self._connected(), permitted(self._settings, action):
            partitions = self._partitions([self._topic])
            ends, starts = self._ends(partitions), self._starts(partitions)
            committed = self._admin.list_group_offsets({self._group: partitions})[self._group]
            return sum(
                behind(starts[one], ends[one], committed_offset(committed.get(one)))
                for one in partitions
            )
