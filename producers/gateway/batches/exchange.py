"""Puts one batch's requests on the topic and reads their results, whoever asked them.

A new owner reads the results since the batch was created, and which requests are on the topic: only
what is on neither is asked.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Container, Iterable, Iterator
from concurrent.futures import Future

from infra.contracts import catalogue
from infra.contracts.bus import Bus, Record, RecordPosition, TopicPartition, read_since, unread
from infra.contracts.errors import FatalError, FeedloomError
from infra.contracts.events.gateway import BatchChanged
from infra.contracts.events.generation import GenerationResult
from infra.contracts.reading import readable
from producers.client import GenerationClient
from producers.gateway.batches import identity
from producers.gateway.questions import Question

log = logging.getLogger(__name__)

RESULTS = catalogue.RESULTS.name
REQUESTS = catalogue.REQUESTS_BATCH.name
SKEW_MS = 60_000
"""The batch's time is a gateway's, its records' are other machines'."""
POLL_S = 0.2
SILENCE_S = 60.0


class Exchange:
    """``wanted``: the ids of the batch's requests. Not safe across threads."""

    def __init__(
        self, bus: Bus, batch: BatchChanged, wanted: Container[str], *, source: str
    ) -> None:
        self._bus = bus
        self._batch = batch
        self._wanted = wanted
        self._since_ms = max(0, batch.created_at_ms - SKEW_MS)
        self._writing: dict[str, Future[RecordPosition]] = {}
        starts = bus.offsets_since(RESULTS, self._since_ms)
        self._client = GenerationClient(
            bus, source=source, reply_partition=identity.reply_partition(batch.batch_id)
        )
        try:
            self._reader = bus.reader([RESULTS])
        except FeedloomError:
            self._client.close()
            raise
        for where, offset in starts.items():
            self._reader.seek(TopicPartition(*where), offset)

    def past_results(self, stop: Callable[[], bool]) -> Iterator[GenerationResult]:
        """Results up to the topic's present end, or until ``stop`` says so.

        Raises FatalError when the topic cannot be read.
        """
        ends = unread(self._reader, self._bus.end_offsets(RESULTS))
        deadline = time.monotonic() + SILENCE_S
        while ends and not stop():
            records = self._reader.poll(POLL_S, max_records=5_000)
            if records:
                deadline = time.monotonic() + SILENCE_S
            elif time.monotonic() > deadline:
                raise FatalError(f"{RESULTS} could not be read: nothing came for {SILENCE_S:.0f} s")
            yield from self._mine(records)
            ends = unread(self._reader, ends)

    def past_requests(self, stop: Callable[[], bool]) -> set[str]:
        """The ids that are on the topic of requests, up to its present end or until ``stop``."""
        found: set[str] = set()
        for record in read_since(self._bus, REQUESTS, self._since_ms):
            if stop():
                break
            # The key is the request's id: a batch names no affinity.
            if record.key_text in self._wanted:
                found.add(record.key_text)
        return found

    def results(self) -> Iterator[GenerationResult]:
        """What came since the last call; waits a little."""
        yield from self._mine(self._reader.poll(POLL_S))

    def submit(self, request_id: str, question: Question, *, now_ms: int) -> None:
        """Ask one request; it is not worth an answer after the batch's time.

        To the partition of its id and no other, so that the same worker would see it again.
        """
        left_s = max(0.0, (self._batch.expires_at_ms - now_ms) / 1000)
        handle = self._client.submit(
            question.prompt,
            model=question.model,
            sampling=question.sampling,
            messages=question.messages,
            batch=True,
            ttl_s=min(left_s, question.timeout_s or left_s),
            tenant=self._batch.tenant,
            user=question.user,
            metadata=question.metadata,
            request_id=request_id,
            submit_id=request_id,
        )
        # Results are read here, those of an earlier owner's requests too.
        self._client.forget(request_id)
        self._writing[request_id] = handle.written

    def check_written(self) -> None:
        """Raises the DeliveryFailed of a request that the broker did not take."""
        done = [request_id for request_id, future in self._writing.items() if future.done()]
        for request_id in done:
            self._writing.pop(request_id).result()

    def cancel(self, request_id: str, reason: str) -> None:
        """Ask the workers to stop a request."""
        self._client.cancel(request_id, reason)

    def close(self) -> None:
        """Flush and disconnect."""
        self._client.close()
        self._reader.close()

    def _mine(self, records: Iterable[Record]) -> Iterator[GenerationResult]:
        for record in records:
            if record.value is None or record.key_text not in self._wanted:
                continue
            result = readable(record, GenerationResult, log)
            if result is not None and result.submit_id == record.key_text:
                yield result
