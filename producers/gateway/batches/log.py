"""Reads and writes the topics of files and batches.

Kafka knows no compare-and-set, so a change is written one revision above what stands and read back:
of two writers of one revision the log's order lets one stand, and the other learns that it did not.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from infra.contracts import catalogue, codec
from infra.contracts.bus import Bus, Record, RecordPosition, TopicPartition, catch_up
from infra.contracts.errors import ContractError, FatalError, FeedloomError, RetryableError
from infra.contracts.events.gateway import BatchChanged, FileChanged
from infra.registry.client import send
from producers.gateway.batches.errors import BatchContended
from producers.gateway.batches.state import FilesAndBatches, Standing

log = logging.getLogger(__name__)

FILES = catalogue.FILES.name
BATCHES = catalogue.BATCHES.name
POLL_S = 0.2
WRITE_S = 10.0
CHANGES = 10
"""How often a change that was overtaken is made anew."""

T = TypeVar("T")
Change = Callable[[Standing | None], BatchChanged | None]


class BatchLog:
    """One replica's view. Safe across threads; calls that write block until they are read back."""

    def __init__(self, bus: Bus, *, source: str) -> None:
        self._source = source
        self._state = FilesAndBatches()
        self._changed = threading.Condition()
        self._read: dict[TopicPartition, int] = {}
        self._closing = threading.Event()
        self.fault: str | None = None
        """Why the topics are no longer read."""
        self._publisher = bus.publisher(client_id=source)
        self._reader = bus.reader([FILES, BATCHES])
        catch_up(
            bus, self._reader, [FILES, BATCHES], self._poll, what="the batches", timeout_s=60.0
        )
        self._thread = threading.Thread(
            target=self._follow, name=f"{source}-batch-log", daemon=True
        )
        self._thread.start()

    def look(self, question: Callable[[FilesAndBatches], T]) -> T:
        """Ask the state as it is now. Raises FatalError when it is no longer kept up to date."""
        with self._changed:
            self._check()
            return question(self._state)

    def batch(self, batch_id: str) -> Standing | None:
        """A batch, whosever it is. Raises as :meth:`look`."""
        return self.look(lambda state: state.batch(batch_id))

    def change(self, batch_id: str, make: Change, *, source: str | None = None) -> Standing:
        """Publish what ``make`` makes of a batch, and return it once it stands.

        ``make`` gets what stands and returns it changed, with the next revision; ``None`` leaves
        it. It is called again when another writer was faster. ``source`` signs the record.

        Raises:
            BatchContended: others were faster each time.
            RetryableError, FatalError: a topic cannot be written or read.
            Whatever ``make`` raises; nothing is published then.
        """
        for _ in range(CHANGES):
            before = self.batch(batch_id)
            event = make(before)
            if event is None:
                if before is None:
                    raise ValueError(f"there is no batch {batch_id} to be left as it is")
                return before
            at = self._write(BATCHES, batch_id, event, source)
            now = self.batch(batch_id)
            if now is not None and now.offset == at.offset:
                return now
        raise BatchContended(f"{batch_id} is being changed by others all the time: try again")

    def put_file(self, event: FileChanged) -> None:
        """Publish a file, or its deletion; this replica knows it when this returns.

        Raises as :meth:`change`.
        """
        self._write(FILES, event.file_id, event, None)

    def reached(self, record: Record) -> bool:
        """Whether a record of these topics, read elsewhere, has been taken in here too."""
        where = TopicPartition(record.topic, record.partition)
        return self.look(lambda _: self._read.get(where, 0) > record.offset)

    def close(self) -> None:
        """Write what is left, and stop."""
        self._closing.set()
        self._thread.join()
        self._publisher.close()

    def _write(
        self, topic: str, key: str, event: BatchChanged | FileChanged, source: str | None
    ) -> RecordPosition:
        written: Future[RecordPosition] = send(
            self._publisher, topic, key, event, source=source or self._source
        )
        try:
            at = written.result(WRITE_S)
        except TimeoutError as error:
            raise RetryableError(f"{topic} took no record within {WRITE_S:.0f} s") from error
        where = TopicPartition(topic, at.partition)
        deadline = time.monotonic() + WRITE_S
        with self._changed:
            while self._read.get(where, 0) <= at.offset:
                self._check()
                left = deadline - time.monotonic()
                if left <= 0:
                    raise RetryableError(f"{topic} was not read back within {WRITE_S:.0f} s")
                self._changed.wait(min(left, 1.0))
        return at

    def _check(self) -> None:
        if self.fault is not None:
            raise FatalError(f"the batches are no longer read: {self.fault}")

    def _follow(self) -> None:
        fault: str | None = "the reading thread has ended"
        try:
            while not self._closing.is_set():
                self._poll(POLL_S)
        except FeedloomError as error:
            log.exception("the topics of files and batches can no longer be read")
            fault = str(error)
        finally:
            with self._changed:
                self.fault = fault
                self._changed.notify_all()
            self._reader.close()

    def _poll(self, timeout_s: float) -> None:
        records = self._reader.poll(timeout_s)
        with self._changed:
            for record in records:
                self._apply(record)
                self._read[TopicPartition(record.topic, record.partition)] = record.offset + 1
            if records:
                self._changed.notify_all()

    def _apply(self, record: Record) -> None:
        if record.value is None:
            self._state.forget(record.key_text)
            return
        try:
            event = codec.decode_any(record.value)
        except ContractError as error:
            log.warning("unreadable record on %s: %s", record.where, error)
            return
        if isinstance(event, FileChanged) and record.topic == FILES:
            self._state.apply_file(event)
        elif isinstance(event, BatchChanged) and record.topic == BATCHES:
            source = codec.header(record.headers, "ce_source") or ""
            self._state.apply_batch(event, offset=record.offset, source=source)
        else:
            log.warning("%s on %s does not belong there", type(event).__name__, record.where)
