"""Reads feedback examples. The durable position is the lineage of published versions.

Each version says which offsets it was trained on, so the position moves exactly when a version is
published: a crash before that reads the same examples again, one after it does not.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass

from opentelemetry import trace

from infra.contracts import catalogue, codec
from infra.contracts.bus import Bus, Publisher, Record, TopicPartition
from infra.contracts.errors import ContractError
from infra.contracts.events import FeedbackExample, ModelVersionPublished, OffsetRange
from observability.propagation import extract
from trainer.curation import target_of

log = logging.getLogger(__name__)

TOPIC = catalogue.EXAMPLES.name
DEAD_LETTER_TIMEOUT_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Examples to train on, the newest of each request, with the offsets they span."""

    examples: tuple[FeedbackExample, ...]
    ranges: tuple[OffsetRange, ...]
    links: tuple[trace.Link, ...] = ()


def next_offsets(versions: Iterable[ModelVersionPublished]) -> dict[TopicPartition, int]:
    """Where to read on, by the lineage of what was published."""
    offsets: dict[TopicPartition, int] = {}
    for version in versions:
        for span in version.lineage.feedback:
            position = TopicPartition(span.topic, span.partition)
            offsets[position] = max(offsets.get(position, 0), span.end)
    return offsets


class FeedbackIntake:
    """Collects examples of one model until they are taken as a batch."""

    def __init__(self, bus: Bus, *, model: str, start: dict[TopicPartition, int]) -> None:
        self._model = model
        self._start = {position: start.get(position, 0) for position in bus.end_offsets(TOPIC)}
        self._next = dict(self._start)
        self._reader = bus.reader([TOPIC])
        for position, offset in self._start.items():
            self._reader.seek(position, offset)
        self._publisher: Publisher = bus.publisher(client_id="feedloom-trainer")
        self._examples: dict[str, FeedbackExample] = {}
        self._links: dict[str, trace.Link] = {}
        self._oldest_s: float | None = None

    @property
    def waiting(self) -> int:
        """Requests with feedback that no version was trained on yet."""
        return len(self._examples)

    @property
    def teaching(self) -> int:
        """Of those that wait, how many say what the answer should have been.

        Feedback on one answer comes in pieces: a thumb down first, the edit a moment later. A
        round that counted the thumb would train without the edit.
        """
        return sum(target_of(example) is not None for example in self._examples.values())

    @property
    def waited_s(self) -> float:
        """How long ago the first of them was read, seconds."""
        return 0.0 if self._oldest_s is None else time.monotonic() - self._oldest_s

    def poll(self, timeout_s: float) -> int:
        """Read on; returns how many records came. Unreadable ones go to the dead-letter topic."""
        records = self._reader.poll(timeout_s)
        for record in records:
            self._take_in(record)
            self._next[TopicPartition(record.topic, record.partition)] = record.offset + 1
        return len(records)

    def batch(self) -> Batch:
        """Everything waiting; it keeps waiting until :meth:`settle`."""
        return Batch(
            examples=tuple(self._examples.values()),
            ranges=tuple(
                OffsetRange(
                    topic=position.topic,
                    partition=position.partition,
                    start=self._start[position],
                    end=end,
                )
                for position, end in sorted(self._next.items())
                if end > self._start[position]
            ),
            links=tuple(self._links.values()),
        )

    def settle(self) -> None:
        """The batch is in a published version (or is known to be useless): move on."""
        self._start = dict(self._next)
        self._examples.clear()
        self._links.clear()
        self._oldest_s = None

    def close(self) -> None:
        """Let go of the connections."""
        self._reader.close()
        self._publisher.close()

    def _take_in(self, record: Record) -> None:
        if record.value is None:
            return
        try:
            example = codec.decode(record.value, FeedbackExample)
        except ContractError as error:
            self._dead_letter(record, error)
            return
        if example.model != self._model:
            return
        # The newest record of a request holds the merged whole.
        self._examples[example.request_id] = example
        context = trace.get_current_span(extract(record.headers)).get_span_context()
        if context.is_valid:
            self._links[example.request_id] = trace.Link(context)
        if self._oldest_s is None:
            self._oldest_s = time.monotonic()

    def _dead_letter(self, record: Record, error: ContractError) -> None:
        where = f"{record.topic}/{record.partition} at {record.offset}"
        log.warning("unreadable example on %s: %s", where, error)
        self._publisher.publish(
            f"{record.topic}.dlq",
            key=record.key,
            value=record.value,
            headers=codec.dead_letter_headers(
                record.headers,
                topic=record.topic,
                partition=record.partition,
                offset=record.offset,
                error=error,
            ),
        ).result(DEAD_LETTER_TIMEOUT_S)
