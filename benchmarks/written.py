"""What a side wrote to a topic, read back as any reader sees it: committed records only."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

from benchmarks.harness import Broken
from benchmarks.stage import Deployment
from infra.contracts.bus import Record, TopicPartition, unread

TIMEOUT_S = 300.0


def written(
    place: Deployment, topic: str, since: Mapping[TopicPartition, int] | None = None
) -> list[Record]:
    """Every record between those offsets (default: the beginning) and the topic's present end."""
    return list(follow(place, topic, since))


def follow(
    place: Deployment, topic: str, since: Mapping[TopicPartition, int] | None = None
) -> Iterator[Record]:
    """As :func:`written`, one by one."""
    left = {
        position: end
        for position, end in place.bus.end_offsets(topic).items()
        if end > (0 if since is None else since[position])
    }
    if not left:
        return
    reader = place.bus.reader([topic], partitions=[position.partition for position in left])
    deadline = time.monotonic() + TIMEOUT_S
    try:
        for position in left:
            if since is not None:
                reader.seek(position, since[position])
        while left:
            if time.monotonic() > deadline:
                raise Broken(f"{topic} was not read to its end in {TIMEOUT_S:.0f} s")
            for record in reader.poll(0.2, max_records=5_000):
                # Written since this began: of the next reading.
                if record.offset < left.get(TopicPartition(record.topic, record.partition), 0):
                    yield record
            left = unread(reader, left)
    finally:
        reader.close()


def size_of(record: Record) -> int:
    """Bytes of key, value and headers."""
    size = len(record.key or b"") + len(record.value or b"")
    return size + sum(len(name) + len(value) for name, value in record.headers)
