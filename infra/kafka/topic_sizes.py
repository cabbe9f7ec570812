"""How many records topics hold, as the broker's first and last offsets tell. Not for compacted
ones, nor where transactions write: both leave gaps.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from infra.kafka.connection import permitted
from infra.kafka.offsets import OffsetsClient
from infra.settings import KafkaSettings


class TopicSizes(OffsetsClient):
    """Keeps one admin connection. Not for use by two threads at once."""

    def __init__(self, settings: KafkaSettings, topics: Sequence[str]) -> None:
        super().__init__(settings)
        self._topics = list(topics)

    def measure(self) -> dict[str, int]:
        """Records by topic of the catalogue; a topic that is not there is left out.

        Raises OffsetsUnknown; ConfigurationError: no broker answers, or it does not allow this.
        """
        action = f"describe {', '.join(self._topics)}"
        with self._connected(), permitted(self._settings, action):
            partitions = self._partitions(
                [self._prefix + one for one in self._topics], absent_too=True
            )
            ends, starts = self._ends(partitions), self._starts(partitions)
        sizes = Counter[str]()
        for one in partitions:
            sizes[one.topic.removeprefix(self._prefix)] += ends[one] - starts[one]
        return dict(sizes)
