"""Read, replay and drop dead letters on any bus. What they mean: ``infra.contracts.dead_letters``.

Nothing is ever removed from a dead-letter topic here; retention does that.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial

from kafka import KafkaConsumer
from kafka import TopicPartition as KafkaPartition

from infra.contracts.bus import Bus, Publisher, Record, RecordPosition, TopicPartition
from infra.contracts.dead_letters import (
    TOPICS,
    DeadLetterRefused,
    Letter,
    LetterId,
    fold,
    replay_headers,
    settlement_headers,
)
from infra.contracts.errors import FeedloomError, RetryableError
from infra.kafka.bus import KafkaBus, resolve_kafka
from infra.kafka.connection import client_options, reachable
from infra.kafka.publisher import DELIVERY_TIMEOUT_MS
from infra.settings import KafkaSettings, Settings

CLIENT_ID = "feedloom-dlq"
BATCH = 100
"""Letters between two waits for the broker: the most that a crash makes a replay repeat."""
POLL_S = 0.25
BLANK_TIMEOUT_S = 5.0
STALL_TIMEOUT_S = 30.0
# Longer than the producer's own limit, so that the wait ends with what became of the record.
ACKNOWLEDGE_TIMEOUT_S = DELIVERY_TIMEOUT_MS / 1000 + 30

Spans = Mapping[TopicPartition, tuple[int, int]]
"""Offsets of a partition: from the first, up to but not including the second."""


class DeadLettersUnreadable(RetryableError):
    """The broker stopped answering before the end of a dead-letter topic. Nothing was changed."""


class SettlingIncomplete(RetryableError):
    """Some letters could not be replayed or dropped; the message says how far it came."""


def none_blank(spans: Spans) -> Collection[TopicPartition]:
    """For a bus on which every offset below the end holds a record."""
    return ()


class DeadLetters:
    """The dead letters of one bus.

    ``blank`` says which spans hold no record that could be read: Kafka's offsets have gaps where
    records expired or a transaction left its marker, and a reader only meets them as silence. It
    is asked when nothing comes.
    """

    def __init__(
        self,
        bus: Bus,
        *,
        blank: Callable[[Spans], Collection[TopicPartition]] = none_blank,
        stall_timeout_s: float = STALL_TIMEOUT_S,
    ) -> None:
        self._bus = bus
        self._blank = blank
        self._stall_timeout_s = stall_timeout_s

    def letters(self, topics: Collection[str]) -> list[Letter]:
        """Every letter of these source topics as of now, settled ones too, sorted by id.

        Raises DeadLettersUnreadable rather than leave letters out.
        """
        spans = {
            position: (0, end)
            for topic in topics
            for position, end in self._bus.end_offsets(TOPICS[topic]).items()
        }
        return fold(record for records in self._scan(spans) for record in records)

    def record(self, letter: LetterId) -> Record:
        """A letter as it lies on the dead-letter topic. Raises DeadLetterRefused: it expired."""
        ((record,),) = self._batches([letter])
        return record

    def replay(
        self,
        letters: Collection[LetterId],
        *,
        by: str,
        reason: str = "",
        value: bytes | None = None,
    ) -> list[tuple[LetterId, RecordPosition]]:
        """Publish the originals to their source topics, then mark the letters as replayed.

        Bytes (or ``value`` in their stead), key and headers are the original's; the partition is
        chosen by key. Returns where each was written, in the order of writing.

        At least once: a letter is marked after the broker has acknowledged its copy. A crash
        between the two leaves up to ``BATCH`` letters replayed and still open, and the next replay
        sends them a second time; none is ever marked without having been sent. Two people who
        replay the same letter at the same time also send it twice.

        Raises SettlingIncomplete when the broker refuses one; what was sent till then is marked.
        """
        done: list[tuple[LetterId, RecordPosition]] = []
        publisher = self._bus.publisher(client_id=CLIENT_ID)
        try:
            for records in self._batches(letters):
                sent, failure = _outcomes(
                    {LetterId.of(record): _send(publisher, record, value) for record in records}
                )
                marks = {
                    letter: settlement_headers(
                        letter,
                        "replayed",
                        by=by,
                        reason=reason,
                        replayed_to=position,
                        repaired=value is not None,
                    )
                    for letter, position in sent.items()
                }
                marked, unmarked = _outcomes(_mark(publisher, marks))
                done.extend((letter, sent[letter]) for letter in marked)
                if unmarked is not None:
                    lost = ", ".join(str(letter) for letter in sent if letter not in marked)
                    raise SettlingIncomplete(
                        f"replayed but not marked, so still listed as open: {lost} ({unmarked}); "
                        f"{len(done)} of {len(letters)} are replayed and marked"
                    ) from unmarked
                if failure is not None:
                    raise SettlingIncomplete(
                        f"{len(done)} of {len(letters)} letters are replayed, the others stay "
                        f"open: {failure}"
                    ) from failure
        finally:
            publisher.close()
        return done

    def drop(self, letters: Collection[LetterId], *, by: str, reason: str = "") -> None:
        """Mark letters as dropped; their records stay until they expire. Harmless to repeat.

        Raises SettlingIncomplete when the broker refuses a mark; what it took stays marked.
        """
        marks = {
            letter: settlement_headers(letter, "dropped", by=by, reason=reason)
            for letter in letters
        }
        publisher = self._bus.publisher(client_id=CLIENT_ID)
        try:
            marked, failure = _outcomes(_mark(publisher, marks))
        finally:
            publisher.close()
        if failure is not None:
            raise SettlingIncomplete(
                f"{len(marked)} of {len(marks)} letters are dropped, the others stay open: "
                f"{failure}"
            ) from failure

    def _batches(self, letters: Collection[LetterId]) -> Iterator[list[Record]]:
        """The letters' records, each partition's in order. Raises DeadLetterRefused at the end."""
        wanted = set(letters)
        spans: dict[TopicPartition, tuple[int, int]] = {}
        for letter in wanted:
            position = TopicPartition(TOPICS[letter.topic], letter.partition)
            start, end = spans.get(position, (letter.offset, 0))
            spans[position] = (min(start, letter.offset), max(end, letter.offset + 1))
        for records in self._scan(spans):
            found = [record for record in records if LetterId.of(record) in wanted]
            wanted.difference_update(LetterId.of(record) for record in found)
            if found:
                yield found
        if wanted:
            gone = ", ".join(str(letter) for letter in sorted(wanted))
            raise DeadLetterRefused(f"no longer on the dead-letter topic: {gone}")

    def _scan(self, spans: Spans) -> Iterator[list[Record]]:
        """The records of each span, in batches."""
        left = {position: span for position, span in spans.items() if span[0] < span[1]}
        if not left:
            return
        reader = self._bus.reader(
            sorted({position.topic for position in left}),
            partitions=sorted({position.partition for position in left}),
        )
        try:
            for position, (start, _) in left.items():
                # From offset 0 the reader starts by itself, wherever the log begins by now.
                if start:
                    reader.seek(position, start)
            heard_s = time.monotonic()
            while left:
                # The reader may go on past a span's end, or read partitions that no span asks for.
                records = [
                    record
                    for record in reader.poll(POLL_S, max_records=BATCH)
                    if TopicPartition(record.topic, record.partition) in left
                ]
                found = [record for record in records if _take(left, record)]
                if found:
                    yield found
                blank = () if records else self._blank(left)
                for position in blank:
                    del left[position]
                if records or blank:
                    # After the yield: what the caller did meanwhile is not the broker's silence.
                    heard_s = time.monotonic()
                elif time.monotonic() - heard_s > self._stall_timeout_s:
                    late = ", ".join(f"{topic}/{partition}" for topic, partition in sorted(left))
                    raise DeadLettersUnreadable(
                        f"no record of {late} came for {self._stall_timeout_s:.0f} s: look at the "
                        "broker (`feedloom doctor`), then run this again"
                    )
        finally:
            reader.close()


def _take(left: dict[TopicPartition, tuple[int, int]], record: Record) -> bool:
    """Shorten the record's span by it; ``False`` if it lies in none."""
    position = TopicPartition(record.topic, record.partition)
    _, end = left.get(position, (0, 0))
    if record.offset + 1 < end:
        left[position] = (record.offset + 1, end)
    else:
        left.pop(position, None)
    return record.offset < end


def _send(publisher: Publisher, record: Record, value: bytes | None) -> Future[RecordPosition]:
    body = record.value if value is None else value
    topic = LetterId.of(record).topic
    if record.key is None and body is None:
        refused: Future[RecordPosition] = Future()
        refused.set_exception(
            DeadLetterRefused(
                f"{LetterId.of(record)} has neither key nor value, which Kafka's Python clients do "
                "not write; drop it, or give it a --value"
            )
        )
        return refused
    return publisher.publish(topic, key=record.key, value=body, headers=replay_headers(record))


def _mark(
    publisher: Publisher, marks: Mapping[LetterId, list[tuple[str, bytes]]]
) -> dict[LetterId, Future[RecordPosition]]:
    return {
        letter: publisher.publish(
            TOPICS[letter.topic],
            # No key: were the topic ever compacted, a mark must not take its letter's place. The
            # value is empty, not null, because kafka-python wants one of the two.
            key=None,
            value=b"",
            headers=headers,
            partition=letter.partition,
        )
        for letter, headers in marks.items()
    }


def _outcomes(
    pending: Mapping[LetterId, Future[RecordPosition]],
) -> tuple[dict[LetterId, RecordPosition], Exception | None]:
    """Wait for all; where the acknowledged ones were written, and the first failure."""
    written: dict[LetterId, RecordPosition] = {}
    failure: Exception | None = None
    for letter, future in pending.items():
        try:
            written[letter] = future.result(ACKNOWLEDGE_TIMEOUT_S)
        except (FeedloomError, TimeoutError) as error:
            failure = failure or error
    return written, failure


def blank_spans(settings: KafkaSettings, spans: Spans) -> set[TopicPartition]:
    """The spans of which a read_committed consumer passes the end without meeting a record.

    Gives up on a span after ``BLANK_TIMEOUT_S``: it is then not among those returned.
    """
    left = {
        KafkaPartition(settings.topic_prefix + position.topic, position.partition): position
        for position in spans
    }
    blank: set[TopicPartition] = set()
    with reachable(settings):
        consumer = KafkaConsumer(
            **client_options(settings),
            client_id=CLIENT_ID,
            group_id=None,
            auto_offset_reset="earliest",
            enable_auto_commit=False,
            isolation_level="read_committed",
            fetch_max_wait_ms=100,
            allow_auto_create_topics=False,
        )
        try:
            consumer.assign(list(left))
            for partition, position in left.items():
                consumer.seek(partition, spans[position][0])
            deadline_s = time.monotonic() + BLANK_TIMEOUT_S
            while left and time.monotonic() < deadline_s:
                found = consumer.poll(timeout_ms=int(1000 * POLL_S))
                for partition, position in list(left.items()):
                    end = spans[position][1]
                    if any(record.offset < end for record in found.get(partition, ())):
                        del left[partition]
                    elif (consumer.position(partition, timeout_ms=1000) or 0) >= end:
                        blank.add(left.pop(partition))
        finally:
            consumer.close()
    return blank


@contextmanager
def open_dead_letters(settings: Settings) -> Iterator[DeadLetters]:
    """The dead letters of the Kafka that the settings name. Raises as ``resolve_kafka``."""
    kafka = resolve_kafka(settings)
    with KafkaBus(kafka) as bus:
        yield DeadLetters(bus, blank=partial(blank_spans, kafka))
