"""The bus as its users see it. Adapters: ``infra.kafka.bus`` (kafka-python), ``infra.testing``.

Records are bytes: encoding is the caller's business (``infra.contracts.codec``). Topic names here
are the catalogue's; an adapter adds the deployment's prefix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from time import monotonic
from types import TracebackType
from typing import Literal, NamedTuple, Protocol, Self

from infra.contracts.codec import Headers
from infra.contracts.errors import FatalError


class TopicPartition(NamedTuple):
    """A topic of the catalogue and one of its partitions."""

    topic: str
    partition: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One record as read. ``value`` is ``None`` for a tombstone. ``timestamp_ms``: epoch."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()

    @property
    def key_text(self) -> str:
        """The key as text; empty without one."""
        return (self.key or b"").decode("utf-8", "replace")

    @property
    def where(self) -> str:
        """Its place, for messages."""
        return f"{self.topic}/{self.partition} at {self.offset}"


@dataclass(frozen=True, slots=True)
class RecordPosition:
    """Where a published record was written."""

    topic: str
    partition: int
    offset: int


Partitions = Sequence[int] | Mapping[str, Sequence[int]]
"""Those of each topic, or of each its own; a topic that is not named has none."""


def wanted(partitions: Partitions | None, topic: str, partition: int) -> bool:
    """Whether a partition is among those that were asked for; ``None``: all were."""
    if partitions is None:
        return True
    listed = partitions.get(topic, ()) if isinstance(partitions, Mapping) else partitions
    return partition in listed


class Publisher(Protocol):
    """Writes records, acks=all and idempotent: a retry inside it never duplicates."""

    def publish(
        self,
        topic: str,
        *,
        key: bytes | None,
        value: bytes | None,
        headers: Headers = (),
        partition: int | None = None,
    ) -> Future[RecordPosition]:
        """Enqueue a record; the future ends when the broker has it, or with the error."""
        ...

    def flush(self, timeout_s: float | None = None) -> None:
        """Wait until everything published so far is written. Raises ``TimeoutError``."""
        ...

    def close(self, timeout_s: float = ...) -> None:
        """Flush, then let go of the connection. Safe to call twice.

        What is not written within ``timeout_s`` fails; by default that is as long as a delivery
        may take.
        """
        ...


class Reader(Protocol):
    """Reads with or without a group. Not for use by two threads at once."""

    def poll(self, timeout_s: float, max_records: int = 500) -> Sequence[Record]:
        """Records in partition order; empty if none came within ``timeout_s``."""
        ...

    def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Store next-to-read offsets for the group. Raises ``RuntimeError`` without a group."""
        ...

    def seek(self, position: TopicPartition, offset: int) -> None:
        """Read this partition from ``offset`` next."""
        ...

    def seek_since(self, timestamp_ms: int) -> Mapping[TopicPartition, int]:
        """Read next what was written at or after a moment. Only without a group.

        Returns the present end of each partition, as ``Bus.end_offsets`` does.
        """
        ...

    def position(self, position: TopicPartition) -> int:
        """The offset read next; markers of transactions that were passed over count."""
        ...

    def close(self) -> None:
        """Leave the group, if any, and let go of the connection. Safe to call twice."""
        ...


class Bus(Protocol):
    """Opens publishers and readers, and knows where topics end."""

    def publisher(self, *, client_id: str = "feedloom") -> Publisher:
        """A new publisher."""
        ...

    def reader(
        self,
        topics: Sequence[str],
        *,
        group: str | None = None,
        start: Literal["earliest", "latest"] = "earliest",
        partitions: Partitions | None = None,
    ) -> Reader:
        """A new reader.

        Without ``group`` it reads every partition (or the given ``partitions``)
        from ``start``; ``latest`` is resolved before this returns, so a record published
        afterwards is seen. With ``group`` partitions are shared with its other members, and
        ``start`` only applies where nothing was committed. ``read_committed`` always.
        """
        ...

    def end_offsets(self, topic: str) -> Mapping[TopicPartition, int]:
        """The offset after the last readable record of each partition."""
        ...

    def offsets_since(self, topic: str, timestamp_ms: int) -> Mapping[TopicPartition, int]:
        """The first offset written at or after a moment; the end where there is none."""
        ...

    def close(self) -> None:
        """Let go of what the bus itself holds; publishers and readers are closed by their owner."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


def unread(reader: Reader, ends: Mapping[TopicPartition, int]) -> dict[TopicPartition, int]:
    """Those of ``ends`` that a reader has not come to.

    Goes by positions, not by counts: markers of transactions and compacted records leave gaps.
    """
    return {
        position: end
        for position, end in ends.items()
        if end > 0 and reader.position(position) < end
    }


def catch_up(
    bus: Bus,
    reader: Reader,
    topics: Sequence[str],
    poll: Callable[[float], object],
    *,
    what: str,
    timeout_s: float,
    poll_s: float = 0.2,
) -> None:
    """Call ``poll``, which reads with ``reader``, up to the ends that the topics have now.

    Raises FatalError, about ``what``, after ``timeout_s``.
    """
    ends = {position: end for topic in topics for position, end in bus.end_offsets(topic).items()}
    deadline = monotonic() + timeout_s
    while ends := unread(reader, ends):
        if monotonic() > deadline:
            raise FatalError(f"{what} could not be read within {timeout_s:.0f} s")
        poll(poll_s)


def read_to_end(
    bus: Bus, topic: str, *, timeout_s: float = 60.0, poll_s: float = 0.2
) -> list[Record]:
    """Every record of a topic up to its present end, partition by partition in order.

    Raises ``TimeoutError``.
    """
    left = {position: end for position, end in bus.end_offsets(topic).items() if end > 0}
    found: list[Record] = []
    reader = bus.reader([topic])
    deadline = monotonic() + timeout_s
    try:
        while left:
            if monotonic() > deadline:
                raise TimeoutError(f"{topic} was not read to its end within {timeout_s:.0f} s")
            found += [
                record
                for record in reader.poll(poll_s)
                if record.offset < left.get(TopicPartition(record.topic, record.partition), 0)
            ]
            left = unread(reader, left)
    finally:
        reader.close()
    return found


def read_since(
    bus: Bus, topic: str, timestamp_ms: int, *, silence_s: float = 60.0, poll_s: float = 0.2
) -> Iterator[Record]:
    """Records written at or after a moment, up to the topic's present end; without a group.

    Partition by partition in order. Holds one poll's records. Raises FatalError when nothing comes
    for ``silence_s`` and the end is not reached.
    """
    reader = bus.reader([topic])
    try:
        ends = reader.seek_since(timestamp_ms)
        left = dict(ends)
        deadline = monotonic() + silence_s
        while left := unread(reader, left):
            found = reader.poll(poll_s, max_records=5_000)
            if found:
                deadline = monotonic() + silence_s
            elif monotonic() > deadline:
                raise FatalError(f"{topic} could not be read: nothing came for {silence_s:.0f} s")
            for record in found:
                if record.offset < ends[TopicPartition(record.topic, record.partition)]:
                    yield record
    finally:
        reader.close()
