"""What earlier owners left of newly assigned partitions. Reads topics; blocking, for a thread.

Two things are on the topics already and need no table of their own. The token log (the chunks
topic) says what was emitted of requests that nobody finished. And a partition's position says
which requests are finished, below the committed offset and beyond it, so the requests topic itself
remembers which ids were answered: enough to know a duplicate submit.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import msgspec

from infra.contracts.assembly import ChunkAssembler
from infra.contracts.bus import Bus, Reader, Record, TopicPartition, unread
from infra.contracts.catalogue import CHUNKS
from infra.contracts.codec import decode, header
from infra.contracts.errors import ContractError, RetryableError
from infra.contracts.events.generation import GenerationChunk
from stream_workers.engine import Emitted
from stream_workers.handler import RequestKey, Resumption
from stream_workers.offsets import Position
from stream_workers.sink import SOURCE_HEADER

_LOG = logging.getLogger(__name__)

CLOCK_SKEW_MS = 5_000
TIMEOUT_S = 60.0


class RecoveryIncomplete(RetryableError):
    """The topics could not be read to their ends in time."""


@dataclass(frozen=True)
class Recovered:
    """``resumptions`` by partition and offset of the request; ``answered``: ids not to repeat."""

    resumptions: dict[TopicPartition, dict[int, Resumption]] = field(default_factory=dict)
    answered: list[RequestKey] = field(default_factory=list)


class _Ids(msgspec.Struct):
    request_id: str
    submit_id: str


_IDS = msgspec.json.Decoder(_Ids)


def recover(bus: Bus, positions: Mapping[TopicPartition, Position], *, remember: int) -> Recovered:
    """Read what is needed to go on from ``positions``.

    ``remember``: how many records below each base are searched for answered ids. Raises
    RecoveryIncomplete.
    """
    started = time.monotonic()
    resumptions = _emitted(bus, positions)
    answered = list(_answered(bus, positions, remember)) if remember else []
    found = sum(map(len, resumptions.values()))
    _LOG.info(
        "took over %d partitions in %.1f s: %d answers to go on with, %d answered ids known",
        len(positions),
        time.monotonic() - started,
        found,
        len(answered),
    )
    return Recovered(resumptions, answered)


def _emitted(
    bus: Bus, positions: Mapping[TopicPartition, Position]
) -> dict[TopicPartition, dict[int, Resumption]]:
    """The token log, from the moment that the oldest unfinished request may have started."""
    moments = [position.since_ms for position in positions.values() if position.since_ms]
    if not moments:
        return {}
    starts = bus.offsets_since(CHUNKS.name, min(moments) - CLOCK_SKEW_MS)
    answers: dict[tuple[TopicPartition, int], ChunkAssembler] = {}
    for record in _read(bus, CHUNKS.name, starts):
        source = _source(record)
        if source is None or source[0] not in positions:
            continue
        if positions[source[0]].is_finished(source[1]):
            continue
        try:
            chunk = decode(record.value or b"", GenerationChunk)
        except ContractError:
            continue  # not ours to judge: it is of no use here
        answers.setdefault(source, ChunkAssembler()).add(chunk)
    found: dict[TopicPartition, dict[int, Resumption]] = {}
    for (partition, offset), answer in answers.items():
        resumption = resumption_of(answer)
        if resumption is not None:
            found.setdefault(partition, {})[offset] = resumption
    return found


def resumption_of(answer: ChunkAssembler) -> Resumption | None:
    """What a next run continues from; ``None`` when nothing of use was emitted.

    A run that begins at token ``n`` replaces what readers have from token ``n`` on. Text that was
    emitted with no token of its own after the last token is therefore emitted again.
    """
    chunks = [chunk for chunk in answer.chunks if chunk.index == 0]
    count = 0
    for chunk in chunks:
        if chunk.first_token != count:
            return None  # its beginning is no longer on the log
        count += len(chunk.token_ids)
    if count == 0:
        return None
    kept = [chunk for chunk in chunks if chunk.first_token < count]
    versions = dict.fromkeys(chunk.model_version for chunk in kept if chunk.token_ids)
    return Resumption(
        emitted=Emitted(
            token_ids=tuple(token for chunk in kept for token in chunk.token_ids),
            text="".join(chunk.text for chunk in kept),
        ),
        versions=tuple(versions),
    )


def _source(record: Record) -> tuple[TopicPartition, int] | None:
    named = header(record.headers, SOURCE_HEADER)
    if named is None:
        return None
    topic, partition, offset = [*named.rsplit("/", 2), "", ""][:3]
    if not partition.isdecimal() or not offset.isdecimal():
        return None
    return TopicPartition(topic, int(partition)), int(offset)


def _answered(
    bus: Bus, positions: Mapping[TopicPartition, Position], remember: int
) -> Iterator[RequestKey]:
    for topic in sorted({partition.topic for partition in positions}):
        here = {p: position for p, position in positions.items() if p.topic == topic}
        starts = {p: max(0, position.base - remember) for p, position in here.items()}
        ends = {p: position.finished_end for p, position in here.items()}
        for record in _read(bus, topic, starts, ends):
            partition = TopicPartition(record.topic, record.partition)
            if not positions[partition].is_finished(record.offset):
                continue
            try:
                ids = _IDS.decode(record.value or b"")
            except (msgspec.DecodeError, UnicodeDecodeError):
                continue
            yield ids.request_id, ids.submit_id


def _read(
    bus: Bus,
    topic: str,
    starts: Mapping[TopicPartition, int],
    ends: Mapping[TopicPartition, int] | None = None,
) -> Iterator[Record]:
    """Records from ``starts`` to ``ends``, by default the topic's present ones."""
    ends = bus.end_offsets(topic) if ends is None else ends
    left = {
        partition: ends[partition] for partition, start in starts.items() if start < ends[partition]
    }
    if not left:
        return
    reader: Reader = bus.reader([topic], partitions=[each.partition for each in left])
    try:
        for partition in left:
            reader.seek(partition, starts[partition])
        deadline = time.monotonic() + TIMEOUT_S
        while left:
            for record in reader.poll(0.1, max_records=5000):
                if record.offset < ends[TopicPartition(record.topic, record.partition)]:
                    yield record
            left = unread(reader, left)
            if left and time.monotonic() > deadline:
                raise RecoveryIncomplete(
                    f"{topic} was not read to its end within {TIMEOUT_S:.0f} s: {left}"
                )
    finally:
        reader.close()
