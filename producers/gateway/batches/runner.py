"""Chooses which batches this replica runs, and runs them.

The replicas share the topic of batches through a consumer group: each has some partitions, and when
one stops or dies the group gives its partitions to others. Nothing is ever committed, so whoever
gets a partition reads all batches on it and takes those that are not finished. The group says who
should run a batch and notices who is gone; the log of the batch alone says who does
(``producers.gateway.batches.tenure``).
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import msgspec

from infra.contracts.bus import Bus, Record
from infra.contracts.catalogue import BATCHES_GROUP
from infra.contracts.errors import FeedloomError, RetryableError
from infra.contracts.events.gateway import BatchChanged, BatchError
from infra.settings import GatewaySettings
from producers.gateway.batches.errors import BatchTaken
from producers.gateway.batches.log import BATCHES, BatchLog
from producers.gateway.batches.run import BatchRun
from producers.gateway.batches.state import RUNNER_MARK, Standing
from producers.gateway.batches.store import FileStore
from producers.gateway.batches.tenure import Tenure

log = logging.getLogger(__name__)

RUNNING = 4
"""Batches that one replica runs at once; the others of its partitions wait."""
POLL_S = 0.2
MOST_BACKOFF_S = 60.0
GIVE_UP_MS = 3_600_000
"""So long after its time a batch that still cannot be run to its end is failed."""


@dataclass
class _Candidate:
    """A batch to run. ``before``: whose it was when the group gave it to this replica."""

    batch_id: str
    tenant: str
    before: str | None
    created_at_ms: int
    failures: int = 0
    not_before: float = 0.0


class BatchRunner:
    """Runs from when it is made until it is closed, in threads of its own."""

    def __init__(
        self,
        bus: Bus,
        batches: BatchLog,
        store: FileStore,
        settings: GatewaySettings,
        *,
        source: str,
        known: Callable[[str], bool],
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self.name = f"{source}{RUNNER_MARK}{secrets.token_hex(4)}"
        self.fault: str | None = None
        """Why it runs no batches any more."""
        self._bus = bus
        self._batches = batches
        self._store = store
        self._settings = settings
        self._source = source
        self._known = known
        self._now_ms = now_ms
        self._arrived: deque[Record] = deque()
        self._candidates: dict[str, _Candidate] = {}
        self._running: dict[str, Future[None]] = {}
        self._closing = threading.Event()
        self._reader = bus.reader([BATCHES], group=BATCHES_GROUP)
        self._pool = ThreadPoolExecutor(RUNNING, thread_name_prefix=f"{source}-batch")
        self._thread = threading.Thread(target=self._run, name=f"{source}-batches", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Leave what runs to the other replicas, or to the next start."""
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        fault: str | None = "the thread that chooses batches has ended"
        try:
            while not self._closing.is_set():
                self._arrived.extend(self._reader.poll(POLL_S))
                while self._arrived and self._batches.reached(self._arrived[0]):
                    self._see(self._arrived.popleft())
                self._reap()
                self._start()
        except FeedloomError as error:
            log.exception("this gateway runs no batches any more")
            fault = str(error)
        finally:
            self._closing.set()
            self.fault = fault
            self._pool.shutdown()
            # Only now may others get its partitions.
            self._reader.close()

    def _see(self, record: Record) -> None:
        """A batch on a partition that the group gave to this replica."""
        batch_id = record.key_text
        standing = self._batches.batch(batch_id)
        if standing is None:
            return
        if not standing.finished:
            known = self._candidates.get(batch_id)
            if known is None:
                event = standing.event
                self._candidates[batch_id] = _Candidate(
                    batch_id, event.tenant, standing.owner, event.created_at_ms
                )
            elif batch_id not in self._running:
                known.before = standing.owner
        elif record.offset > standing.offset:
            self._confirm(standing)

    def _confirm(self, standing: Standing) -> None:
        """A record that came too late to stand is the last one, which compaction keeps."""

        def make(now: Standing | None) -> BatchChanged | None:
            if now is None or now.offset != standing.offset:
                return None
            return msgspec.structs.replace(now.event, revision=now.event.revision + 1)

        try:
            self._batches.change(standing.event.batch_id, make, source=self.name)
        except RetryableError as error:
            # Whoever gets the partition next sees it again.
            log.warning("the end of %s was not told again: %s", standing.event.batch_id, error)

    def _start(self) -> None:
        while len(self._running) < RUNNING:
            candidate = self._next()
            if candidate is None:
                return
            standing = self._batches.batch(candidate.batch_id)
            if (
                standing is None
                or standing.finished
                or standing.owner not in (candidate.before, self.name)
            ):
                del self._candidates[candidate.batch_id]
                continue
            run = BatchRun(
                self._bus,
                self._batches,
                self._store,
                self._settings,
                Tenure(self._batches, candidate.batch_id, runner=self.name, now_ms=self._now_ms),
                source=f"{self._source}-batch",
                known=self._known,
                now_ms=self._now_ms,
                stop=self._closing,
            )
            self._running[candidate.batch_id] = self._pool.submit(run.run, candidate.before)

    def _next(self) -> _Candidate | None:
        """Of the tenants with the fewest running, the oldest batch that is due."""
        now = time.monotonic()
        tenants = Counter(self._candidates[one].tenant for one in self._running)
        due = [
            one
            for one in self._candidates.values()
            if one.batch_id not in self._running and now >= one.not_before
        ]
        return min(due, key=lambda one: (tenants[one.tenant], one.created_at_ms), default=None)

    def _reap(self) -> None:
        for batch_id in [one for one, future in self._running.items() if future.done()]:
            error = self._running.pop(batch_id).exception()
            candidate = self._candidates[batch_id]
            if error is None:
                del self._candidates[batch_id]
            elif isinstance(error, BatchTaken):
                log.info("%s", error)
                del self._candidates[batch_id]
            else:
                candidate.failures += 1
                backoff = min(MOST_BACKOFF_S, 2.0 ** min(candidate.failures, 10))
                candidate.not_before = time.monotonic() + backoff
                log.warning(
                    "%s stopped and is tried again in %.0f s", batch_id, backoff, exc_info=error
                )
                self._give_up(candidate)

    def _give_up(self, candidate: _Candidate) -> None:
        standing = self._batches.batch(candidate.batch_id)
        if standing is None or self._now_ms() < standing.event.expires_at_ms + GIVE_UP_MS:
            return
        del self._candidates[candidate.batch_id]
        message = "the gateway could not run the batch in its time, nor write what it had"
        tenure = Tenure(self._batches, candidate.batch_id, runner=self.name, now_ms=self._now_ms)
        try:
            tenure.fail((BatchError(code="internal_error", message=message),))
        except (BatchTaken, RetryableError) as error:
            log.warning("%s was not failed: %s", candidate.batch_id, error)
