"""What the broker says of offsets, over one admin connection that is kept between questions."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from kafka import KafkaAdminClient, OffsetSpec
from kafka import TopicPartition as KafkaPartition
from kafka.errors import KafkaError, for_code

from infra.contracts.errors import RetryableError
from infra.kafka.connection import client_options, reachable
from infra.settings import KafkaSettings


class OffsetsUnknown(RetryableError):
    """The broker did not say."""


class OffsetsClient:
    """Base of what measures by offsets. Not for use by two threads at once.

    Names of topics and groups are here with the deployment's prefix.
    """

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._prefix = settings.topic_prefix
        self._admin: Any = None

    def close(self) -> None:
        """Let go of the connection; the next question makes a new one."""
        if self._admin is not None:
            self._admin.close()
            self._admin = None

    @contextmanager
    def _connected(self) -> Iterator[None]:
        """Raises OffsetsUnknown, and closes; ConfigurationError: no broker answers."""
        try:
            if self._admin is None:
                with reachable(self._settings):
                    self._admin = KafkaAdminClient(**client_options(self._settings))
            yield
        except KafkaError as error:
            self.close()
            raise OffsetsUnknown(f"{type(error).__name__}: {error}") from error

    def _partitions(self, topics: Collection[str], *, absent_too: bool = False) -> list[Any]:
        """Of topics that must all be there, unless ``absent_too``."""
        found = []
        for described in self._admin.describe_topics(sorted(topics)):
            if not described["error_code"]:
                found += [
                    KafkaPartition(described["name"], one["partition_index"])
                    for one in described["partitions"]
                ]
            elif not absent_too:
                raise for_code(described["error_code"])(described["name"])
        return found

    def _starts(self, partitions: Sequence[Any]) -> dict[Any, int]:
        return self._offsets(partitions, OffsetSpec.EARLIEST)

    def _ends(self, partitions: Sequence[Any]) -> dict[Any, int]:
        return self._offsets(partitions, OffsetSpec.LATEST)

    def _offsets(self, partitions: Sequence[Any], spec: Any) -> dict[Any, int]:
        if not partitions:
            return {}
        found = self._admin.list_partition_offsets(dict.fromkeys(partitions, spec))
        return {one: int(offset.offset) for one, offset in found.items()}


def committed_offset(found: Any) -> int | None:
    """Of an answer about one partition; ``None`` where the group has committed nothing."""
    return None if found is None or found.offset < 0 else int(found.offset)


def behind(start: int, end: int, committed: int | None) -> int:
    """Records not committed yet. What has been deleted is not behind any more."""
    return max(0, end - max(start, start if committed is None else committed))
