"""Public test doubles: a bus in memory and a clock moved by hand.

The bus passes the same contract suite as the real one (``tests/contract/test_bus.py``).
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Literal, Self

from infra.contracts.bus import Partitions, Record, RecordPosition, TopicPartition, wanted
from infra.contracts.catalogue import all_topics
from infra.contracts.codec import Headers
from infra.contracts.errors import ConfigurationError


class ManualClock:
    """A clock that stands still until moved. Call it for seconds, as ``time.time``."""

    def __init__(self, now_s: float = 1_700_000_000.0) -> None:
        self._now_s = now_s

    def __call__(self) -> float:
        return self._now_s

    def advance(self, seconds: float) -> None:
        """Move forward; never back."""
        if seconds < 0:
            raise ValueError("time does not run backwards")
        self._now_s += seconds


class InMemoryBus:
    """Topics as lists in this process. ``topics`` maps names to partition counts.

    By default the catalogue's. Keys choose partitions as Kafka's default partitioner does.
    """

    def __init__(self, topics: Mapping[str, int] | None = None) -> None:
        counts = topics or {spec.name: spec.partitions for spec in all_topics()}
        self.changed = threading.Condition()
        self.logs: dict[str, list[list[Record]]] = {
            name: [[] for _ in range(count)] for name, count in counts.items()
        }
        self.committed: dict[str, dict[TopicPartition, int]] = defaultdict(dict)
        self.members: dict[str, list[InMemoryReader]] = defaultdict(list)

    def publisher(self, *, client_id: str = "feedloom") -> InMemoryPublisher:
        """A new publisher."""
        return InMemoryPublisher(self)

    def reader(
        self,
        topics: Sequence[str],
        *,
        group: str | None = None,
        start: Literal["earliest", "latest"] = "earliest",
        partitions: Partitions | None = None,
    ) -> InMemoryReader:
        """A new reader; see the Protocol."""
        if group is not None and partitions is not None:
            raise ValueError("a group shares partitions out: give a group or partitions, not both")
        every = [
            TopicPartition(topic, index)
            for topic in topics
            for index in range(len(self.log_of(topic)))
            if wanted(partitions, topic, index)
        ]
        return InMemoryReader(self, every, group, start)

    def end_offsets(self, topic: str) -> Mapping[TopicPartition, int]:
        """The offset after the last record of each partition."""
        with self.changed:
            logs = self.log_of(topic)
            return {TopicPartition(topic, i): len(log) for i, log in enumerate(logs)}

    def offsets_since(self, topic: str, timestamp_ms: int) -> Mapping[TopicPartition, int]:
        """The first offset at or after a moment; the end where there is none."""
        with self.changed:
            return {
                TopicPartition(topic, index): next(
                    (record.offset for record in log if record.timestamp_ms >= timestamp_ms),
                    len(log),
                )
                for index, log in enumerate(self.log_of(topic))
            }

    def records(self, topic: str) -> list[Record]:
        """Everything on a topic, partition by partition; for assertions."""
        with self.changed:
            return [record for log in self.log_of(topic) for record in log]

    def log_of(self, topic: str) -> list[list[Record]]:
        """The partitions of a topic. Raises ConfigurationError if there is none such."""
        if topic not in self.logs:
            raise ConfigurationError(f"topic {topic} is not on this bus")
        return self.logs[topic]

    def close(self) -> None:
        """Nothing to let go of."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class InMemoryPublisher:
    """Appends at once."""

    def __init__(self, bus: InMemoryBus) -> None:
        self._bus = bus
        self._unkeyed = 0

    def publish(
        self,
        topic: str,
        *,
        key: bytes | None,
        value: bytes | None,
        headers: Headers = (),
        partition: int | None = None,
    ) -> Future[RecordPosition]:
        """Append one record; the future is already done."""
        future: Future[RecordPosition] = Future()
        with self._bus.changed:
            try:
                logs = self._bus.log_of(topic)
                if partition is None:
                    self._unkeyed += key is None
                    chosen = self._unkeyed if key is None else murmur2(key) & 0x7FFFFFFF
                    partition = chosen % len(logs)
                elif not 0 <= partition < len(logs):
                    raise ConfigurationError(f"topic {topic} has no partition {partition}")
            except ConfigurationError as error:
                future.set_exception(error)
                return future
            log = logs[partition]
            log.append(
                Record(
                    topic=topic,
                    partition=partition,
                    offset=len(log),
                    timestamp_ms=time.time_ns() // 1_000_000,
                    key=key,
                    value=value,
                    headers=tuple(headers),
                )
            )
            position = RecordPosition(topic, partition, len(log) - 1)
            self._bus.changed.notify_all()
        future.set_result(position)
        return future

    def flush(self, timeout_s: float | None = None) -> None:
        """Everything is always written."""

    def close(self, timeout_s: float = 0.0) -> None:
        """Nothing to let go of."""


class InMemoryReader:
    """Reads with or without a group; groups rebalance when a member comes or goes."""

    def __init__(
        self,
        bus: InMemoryBus,
        every: Sequence[TopicPartition],
        group: str | None,
        start: Literal["earliest", "latest"],
    ) -> None:
        self._bus = bus
        self._group = group
        self._every = list(every)
        self._closed = False
        with bus.changed:
            self._start = {
                position: len(bus.logs[position.topic][position.partition])
                if start == "latest"
                else 0
                for position in every
            }
            self._next = dict(self._start) if group is None else {}
            if group is not None:
                bus.members[group].append(self)
                self._rebalance()

    def poll(self, timeout_s: float, max_records: int = 500) -> Sequence[Record]:
        """The next records, each partition's in order; waits up to ``timeout_s`` for one."""
        found: list[Record] = []
        with self._bus.changed:
            if self._closed:
                raise RuntimeError("this reader is closed")
            self._bus.changed.wait_for(self._pending, timeout_s)
            for position in list(self._next):
                log = self._bus.logs[position.topic][position.partition]
                at = self._next[position]
                taken = log[at : at + max_records - len(found)]
                found.extend(taken)
                self._next[position] = at + len(taken)
        return found

    def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Store next-to-read offsets for the group."""
        if self._group is None:
            raise RuntimeError("a reader without a group has nowhere to commit to")
        with self._bus.changed:
            self._bus.committed[self._group].update(offsets)

    def seek(self, position: TopicPartition, offset: int) -> None:
        """Read this partition from ``offset`` next."""
        with self._bus.changed:
            if position not in self._next:
                raise RuntimeError(f"{position} is not assigned to this reader")
            self._next[position] = offset
            self._bus.changed.notify_all()

    def seek_since(self, timestamp_ms: int) -> Mapping[TopicPartition, int]:
        """Read next what was written at or after a moment; returns the present ends."""
        if self._group is not None:
            raise RuntimeError("a group says where its members read")
        ends = {}
        with self._bus.changed:
            for topic in {position.topic for position in self._next}:
                since = self._bus.offsets_since(topic, timestamp_ms)
                for position in self._next:
                    if position.topic == topic:
                        self._next[position] = since[position]
                        ends[position] = len(self._bus.logs[topic][position.partition])
            self._bus.changed.notify_all()
        return ends

    def position(self, position: TopicPartition) -> int:
        """The offset read next."""
        with self._bus.changed:
            return self._next[position]

    def close(self) -> None:
        """Leave the group."""
        with self._bus.changed:
            if not self._closed and self._group is not None:
                self._bus.members[self._group].remove(self)
                self._rebalance()
            self._closed = True
            self._next = {}

    def _pending(self) -> bool:
        return any(len(self._bus.logs[t][p]) > at for (t, p), at in self._next.items())

    def _rebalance(self) -> None:
        """Deal partitions out again; what moves is read from the last commit."""
        assert self._group is not None
        members = self._bus.members[self._group]
        committed = self._bus.committed[self._group]
        dealt: dict[InMemoryReader, dict[TopicPartition, int]] = {each: {} for each in members}
        for position in sorted({position for each in members for position in each._every}):
            # Members may read different topics: only those who asked for this one can have it.
            takers = [each for each in members if position in each._start]
            taker = takers[position.partition % len(takers)]
            start = committed.get(position, taker._start[position])
            dealt[taker][position] = taker._next.get(position, start)
        for member, positions in dealt.items():
            member._next = positions
        self._bus.changed.notify_all()


def murmur2(data: bytes) -> int:
    """Kafka's hash of a key, 32 bits unsigned (Appleby's MurmurHash2, Kafka's seed)."""
    multiplier, mask = 0x5BD1E995, 0xFFFFFFFF
    length = len(data)
    value = (0x9747B28C ^ length) & mask
    whole = length - length % 4
    for index in range(0, whole, 4):
        word = int.from_bytes(data[index : index + 4], "little") * multiplier & mask
        word = (word ^ (word >> 24)) * multiplier & mask
        value = (value * multiplier & mask) ^ word
    if whole < length:
        value ^= int.from_bytes(data[whole:], "little")
        value = value * multiplier & mask
    value = (value ^ (value >> 13)) * multiplier & mask
    return value ^ (value >> 15)
