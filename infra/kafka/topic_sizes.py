"""How many records topics hold, as the broker's first and last offsets tell. Not for compacted
ones, nor where transactions write: both leave gaps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kafka import KafkaAdminClient, OffsetSpec
from kafka import TopicPartition as KafkaPartition
from kafka.errors import KafkaError

from infra.kafka.connection import client_options, permitted, reachable
from infra.kafka.lag import LagUnknown
from infra.settings import KafkaSettings


class TopicSizes:
    """Keeps one admin connection. Not for use by two threads at once."""

    def __init__(self, settings: KafkaSettings, topics: Sequence[str]) -> None:
        self._settings = settings
        self._topics = list(topics)
        self._admin: Any = None

    def measure(self) -> dict[str, int]:
        """Records by topic of the catalogue; a topic that is not there is left out.

        Raises LagUnknown; ConfigurationError: no broker answers, or it does not allow this.
        """
        prefix = self._settings.topic_prefix
        try:
            if self._admin is None:
                with reachable(self._settings):
                    self._admin = KafkaAdminClient(**client_options(self._settings))
            with permitted(self._settings, f"describe {', '.join(self._topics)}"):
                described = self._admin.describe_topics([prefix + one for one in self._topics])
                partitions = [
                    KafkaPartition(topic["name"], one["partition_index"])
                    for topic in described
                    if not topic["error_code"]
                    for one in topic["partitions"]
                ]
                ends = self._offsets(partitions, OffsetSpec.LATEST)
                starts = self._offsets(partitions, OffsetSpec.EARLIEST)
        except KafkaError as error:
            self.close()
            raise LagUnknown(f"{type(error).__name__}: {error}") from error
        sizes: dict[str, int] = {}
        for one in partitions:
            name = one.topic.removeprefix(prefix)
            sizes[name] = sizes.get(name, 0) + ends[one] - starts[one]
        return sizes

    def close(self) -> None:
        """Let go of the connection."""
        if self._admin is not None:
            self._admin.close()
            self._admin = None

    def _offsets(self, partitions: Sequence[Any], spec: Any) -> dict[Any, int]:
        found = self._admin.list_partition_offsets(dict.fromkeys(partitions, spec))
        return {one: int(offset.offset) for one, offset in found.items()}
