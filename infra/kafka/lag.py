"""How far the workers' consumer group lags behind a topic."""

from __future__ import annotations

from typing import Any

from kafka import KafkaAdminClient, OffsetSpec
from kafka import TopicPartition as KafkaPartition
from kafka.errors import KafkaError, for_code

from infra.contracts.errors import RetryableError
from infra.kafka.connection import client_options, permitted, reachable
from infra.settings import KafkaSettings


class LagUnknown(RetryableError):
    """The broker did not say."""


class GroupLag:
    """Keeps one admin connection. Not for use by two threads at once.

    ``group`` and ``topic`` as settings and catalogue name them; the deployment's prefix is added
    to both, as workers do.
    """

    def __init__(self, settings: KafkaSettings, *, group: str, topic: str) -> None:
        self._group = settings.topic_prefix + group
        self._topic = settings.topic_prefix + topic
        self._settings = settings
        self._admin: Any = None

    def measure(self) -> int:
        """Records that the group has not committed yet, over all partitions.

        A partition where it has committed nothing counts from its beginning.

        Raises LagUnknown; ConfigurationError: no broker answers, or it does not allow this.
        """
        try:
            if self._admin is None:
                with reachable(self._settings):
                    self._admin = KafkaAdminClient(**client_options(self._settings))
            with permitted(self._settings, f"describe group {self._group} and {self._topic}"):
                return self._measure()
        except KafkaError as error:
            self.close()
            raise LagUnknown(f"{type(error).__name__}: {error}") from error

    def _measure(self) -> int:
        (described,) = self._admin.describe_topics([self._topic])
        if described["error_code"]:
            raise for_code(described["error_code"])(self._topic)
        partitions = [
            KafkaPartition(self._topic, one["partition_index"]) for one in described["partitions"]
        ]
        ends = self._admin.list_partition_offsets(dict.fromkeys(partitions, OffsetSpec.LATEST))
        starts = self._admin.list_partition_offsets(dict.fromkeys(partitions, OffsetSpec.EARLIEST))
        committed = self._admin.list_group_offsets({self._group: partitions})[self._group]
        return sum(
            max(0, ends[one].offset - max(starts[one].offset, _offset(committed.get(one))))
            for one in partitions
        )

    def close(self) -> None:
        """Let go of the connection."""
        if self._admin is not None:
            self._admin.close()
            self._admin = None


def _offset(found: Any) -> int:
    return -1 if found is None else int(found.offset)
