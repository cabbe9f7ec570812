"""Two ways to write down exactly once that a request ended; contenders of ``bench_outcomes``.

``TransactionEnds``: results and positions in one transaction, by the worker's own ``OutcomeLog``
and ``TransactionalProducer``. ``TableEnds``: an idempotent producer writes the results and waits
for them (acks=all), then a marker a request on a compacted topic and waits, then commits the
offsets; what is marked already is not answered again. Both gather what ends while a commit runs,
up to the same number. Request n lies on partition n modulo P at offset n div P.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Protocol

from aiokafka.structs import TopicPartition as BrokerPartition

from infra.contracts.bus import TopicPartition
from infra.contracts.catalogue import REQUESTS
from stream_workers.offsets import OffsetTracker, Position
from stream_workers.outcomes import INTERVAL_S, MAX_RECORDS, Outcome, OutcomeLog
from stream_workers.transactions import Outgoing, TransactionalProducer

PARTITIONS = 12
TABLE = "completed"


def request_id(number: int) -> str:
    """Tells requests apart on the results topic."""
    return f"request-{number:08d}"


class Ends(Protocol):
    """Takes ended requests. ``done``: those committed since it was last emptied."""

    done: set[int]

    @property
    def waiting(self) -> int:
        """Not committed yet."""
        ...

    def put(self, number: int, record: Outgoing) -> None:
        """Request ``number`` ended with ``record``."""
        ...


class Books:
    """What of the request partitions was taken and is finished."""

    def __init__(self, stored: Mapping[int, Position]) -> None:
        self.stored = stored
        self.trackers = {
            TopicPartition(REQUESTS.name, number): OffsetTracker(stored[number])
            for number in range(PARTITIONS)
        }

    def take(self, number: int) -> bool:
        """Deliver request ``number``; ``False`` if an earlier process finished it."""
        partition = TopicPartition(REQUESTS.name, number % PARTITIONS)
        offset = number // PARTITIONS
        # Below what is committed nothing is delivered again.
        if offset < self.stored[partition.partition].base:
            return False
        return self.trackers[partition].deliver(offset, 1)


class TransactionEnds:
    """The worker's own way."""

    def __init__(self, producer: TransactionalProducer, books: Books, prefix: str) -> None:
        self._books = books
        self.log = OutcomeLog(
            producer,
            prefix=prefix,
            trackers=books.trackers,
            position=lambda partition: books.trackers[partition].position(1),
            interval_s=lambda: INTERVAL_S,
        )
        self.done: set[int] = set()

    @property
    def waiting(self) -> int:
        """Not committed yet."""
        return self.log.waiting

    def put(self, number: int, record: Outgoing) -> None:
        """See :class:`Ends`."""
        partition = TopicPartition(REQUESTS.name, number % PARTITIONS)
        self.log.put(
            Outcome(partition, number // PARTITIONS, record, lambda: self.done.add(number))
        )


class TableEnds:
    """The alternative: results, then markers, then offsets."""

    def __init__(
        self, producer: Any, consumer: Any, books: Books, prefix: str, marked: set[int]
    ) -> None:
        self._producer = producer
        self._consumer = consumer
        self._books = books
        self._prefix = prefix
        self._marked = marked
        self._queue: list[tuple[int, Outgoing]] = []
        self._wake = asyncio.Event()
        self._sending = 0
        self.done: set[int] = set()

    @property
    def waiting(self) -> int:
        """Not committed yet."""
        return len(self._queue) + self._sending

    def put(self, number: int, record: Outgoing) -> None:
        """See :class:`Ends`."""
        self._queue.append((number, record))
        self._wake.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._queue:
                batch, self._queue = self._queue[:MAX_RECORDS], self._queue[MAX_RECORDS:]
                self._sending = len(batch)
                await self._end(batch)
                self._sending = 0

    async def _end(self, batch: list[tuple[int, Outgoing]]) -> None:
        fresh = [(number, record) for number, record in batch if number not in self._marked]
        await self._written(
            (record.topic, record.key, record.value, record.headers) for _, record in fresh
        )
        table = self._prefix + TABLE
        await self._written(
            (table, request_id(number).encode(), str(number).encode(), ()) for number, _ in fresh
        )
        for number, _ in batch:
            partition = TopicPartition(REQUESTS.name, number % PARTITIONS)
            self._books.trackers[partition].finish(number // PARTITIONS)
        # Only the lowest unfinished offset: what is beyond it the table knows.
        await self._consumer.commit(
            {
                BrokerPartition(self._prefix + partition.topic, partition.partition): tracker.base
                for partition, tracker in self._books.trackers.items()
                if tracker.base is not None
            }
        )
        self.done.update(number for number, _ in batch)

    async def _written(self, records: Any) -> None:
        pending = [
            await self._producer.send(topic, key=key, value=value, headers=list(headers))
            for topic, key, value, headers in records
        ]
        if pending:
            await asyncio.gather(*pending)
