"""How far what is committed lags behind what was written, by partition. No I/O.

The consumer tells which partitions there are and where they end, the outcome log what it has
committed. Metrics are read by another thread, at any moment.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from infra.contracts.bus import TopicPartition
from observability.instruments import DESTINATION, PARTITION


@dataclass
class _Standing:
    """``end``: the offset after the last record; ``None`` until it is known. ``since_s``: since
    when there has been something to commit and nothing was.
    """

    committed: int
    since_s: float
    end: int | None = None

    @property
    def lag(self) -> int:
        return 0 if self.end is None else max(0, self.end - self.committed)


class PartitionLag:
    """Of the partitions that are owned now."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._standings: dict[TopicPartition, _Standing] = {}

    @property
    def partitions(self) -> list[TopicPartition]:
        """The owned ones."""
        return list(self._standings)

    def assigned(self, committed: Mapping[TopicPartition, int]) -> None:
        """These are the partitions now, and what is committed of each."""
        now = self._clock()
        self._standings = {
            partition: _Standing(offset, now) for partition, offset in committed.items()
        }

    def revoked(self) -> None:
        """None is owned any more."""
        self._standings = {}

    def committed(self, offsets: Mapping[TopicPartition, int]) -> None:
        """A commit stands. Partitions that are not owned are passed over."""
        for partition, offset in offsets.items():
            standing = self._standings.get(partition)
            if standing is not None and offset != standing.committed:
                standing.committed, standing.since_s = offset, self._clock()

    def ended(self, ends: Mapping[TopicPartition, int]) -> None:
        """Where partitions end now."""
        for partition, end in ends.items():
            standing = self._standings.get(partition)
            if standing is None:
                continue
            if not standing.lag:
                standing.since_s = self._clock()
            standing.end = end

    def lags(self) -> Iterable[tuple[float, Mapping[str, str]]]:
        """Records after the committed offset; of partitions whose end is known."""
        return [
            (standing.lag, _attributes(partition))
            for partition, standing in list(self._standings.items())
            if standing.end is not None
        ]

    def stalls(self) -> Iterable[tuple[float, Mapping[str, str]]]:
        """Seconds since the committed offset moved where there is lag, 0 where there is none."""
        now = self._clock()
        return [
            (max(0.0, now - standing.since_s) if standing.lag else 0.0, _attributes(partition))
            for partition, standing in list(self._standings.items())
            if standing.end is not None
        ]


def _attributes(partition: TopicPartition) -> Mapping[str, str]:
    return {DESTINATION: partition.topic, PARTITION: str(partition.partition)}
