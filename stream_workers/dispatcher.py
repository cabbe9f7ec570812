"""From assigned partitions to committed outcomes. Knows nothing of Faust; the loop is one.

A record's way: ``take`` -> its partition's tracker -> handler (decode, judge) -> scheduler ->
a task of its own -> outcome -> one transaction with the partition's position. Records of a
partition run side by side and end in any order. When partitions move, what runs goes on in case
the partition comes back, and is cancelled when it does not; what is delivered again meets the
task, or the outcome, that is already there.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from infra.contracts.bus import Record, TopicPartition
from infra.contracts.catalogue import REQUESTS_BATCH
from infra.contracts.events.generation import GenerationCancellation
from observability.instruments import (
    ADMISSION_WAIT,
    DUPLICATES,
    ERROR_TYPE,
    MESSAGING_PROCESS_DURATION,
    OUTCOME,
    REASON,
    REBALANCES,
    REQUESTS_IN_FLIGHT,
    REQUESTS_QUEUED,
    TENANT,
    bounded_tenant,
)
from observability.messaging import measured
from observability.propagation import extract
from observability.tracing import is_recording
from stream_workers.admission import Load, Scheduler, Ticket
from stream_workers.answered import AnsweredKeys
from stream_workers.handler import Ended, RequestHandler, Resumption
from stream_workers.jobs import Job, Jobs
from stream_workers.offsets import WINDOW, OffsetTracker, Position, decode_position
from stream_workers.outcomes import Outcome, OutcomeLog
from stream_workers.recovery import Recovered
from stream_workers.slack import BatchWindow
from stream_workers.transactions import Committed, GroupMember, Outgoing

_LOG = logging.getLogger(__name__)

TICK_S = 0.02


class Flow(Protocol):
    """Back-pressure: stops and starts the fetching of a partition."""

    def pause(self, partition: TopicPartition) -> None: ...

    def resume(self, partition: TopicPartition) -> None: ...


@dataclass(frozen=True, kw_only=True)
class DispatchOptions:
    """``max_queued``: requests of one class taken and not started. ``remember``: answered ids."""

    max_queued: int = 1_000
    remember: int = 50_000
    revoke_flush_s: float = 5.0


@dataclass(eq=False)
class _Partition:
    """A partition while it is owned. ``held``: fetched, and more than may be worked on now."""

    tracker: OffsetTracker
    since_ms: int
    held: deque[Record] = field(default_factory=deque)
    resumptions: dict[int, Resumption] = field(default_factory=dict)
    recovering: bool = False
    paused: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class PartitionHealth:
    """``oldest_s``: age of the longest unfinished request, since it was taken, seconds."""

    partition: TopicPartition
    unfinished: int
    window: int
    held: int
    oldest_s: float


class Dispatcher:
    """One worker's requests. ``on_fatal`` is called when the process must stop."""

    def __init__(
        self,
        *,
        handler: RequestHandler[Outgoing],
        scheduler: Scheduler[Job],
        batch: BatchWindow,
        load: Callable[[], Load],
        recover: Callable[[Mapping[TopicPartition, Position]], Recovered],
        flow: Flow,
        on_fatal: Callable[[BaseException], None],
        now_ms: Callable[[], int],
        options: DispatchOptions,
    ) -> None:
        self._handler = handler
        self._scheduler = scheduler
        self._batch = batch
        self._load = load
        self._recover = recover
        self._flow = flow
        self._on_fatal = on_fatal
        self._now_ms = now_ms
        self._options = options
        self._log: OutcomeLog | None = None
        self._partitions: dict[TopicPartition, _Partition] = {}
        self._before: dict[TopicPartition, _Partition] = {}
        self.trackers: dict[TopicPartition, OffsetTracker] = {}
        self._jobs = Jobs()
        self._answered = AnsweredKeys(options.remember)
        self._deadlines: list[tuple[int, int, Job]] = []
        self._serial = 0
        self._tasks: set[asyncio.Task[int]] = set()
        self._recoveries: set[asyncio.Task[None]] = set()
        self._epoch = 0
        self._group = ""
        self._draining = False

    def bind(self, log: OutcomeLog) -> None:
        """Where outcomes go. Call once, before anything else."""
        self._log = log

    @property
    def in_flight(self) -> int:
        """Requests being worked on."""
        return len(self._tasks)

    # Partitions come and go.

    async def opened(
        self, stored: Mapping[TopicPartition, Committed], member: GroupMember
    ) -> dict[TopicPartition, int]:
        """These are the partitions now, and where the group stands. Returns where to read on."""
        assert self._log is not None
        await self._log.suspend()
        before, self._before = self._before | self._partitions, {}
        if member.generation != self._epoch + 1:
            # This worker missed a rebalance: others may have owned its partitions meanwhile.
            before = {}
        self._epoch, self._group = member.generation, member.group_id
        REBALANCES.add(1, {OUTCOME: "assigned"})
        positions = {p: decode_position(at.offset, at.metadata) for p, at in stored.items()}
        for job in self._jobs:
            partition, offset = job.place
            if (
                partition not in before
                or partition not in positions
                or positions[partition].is_finished(offset)
            ):
                self._abandon(job)
        fresh: dict[TopicPartition, Position] = {}
        self._partitions.clear()
        self.trackers.clear()
        for partition, position in positions.items():
            state = _Partition(OffsetTracker(position), position.since_ms)
            known = before.get(partition)
            if known is not None and not known.recovering:
                state.resumptions, state.since_ms = known.resumptions, known.since_ms
            else:
                fresh[partition] = position
                state.recovering = True
            self._partitions[partition] = state
            self.trackers[partition] = state.tracker
        self._log.resume(member)
        # So that the next owner finds since when to look for answers, even if nothing ends here.
        self._log.touch(stored)
        if fresh:
            task = asyncio.create_task(self._take_over(fresh, member.generation))
            self._recoveries.add(task)
            task.add_done_callback(self._recovered)
        return {partition: committed.offset for partition, committed in stored.items()}

    async def revoking(self) -> None:
        """All partitions are about to be dealt out again: commit what has ended, start nothing."""
        assert self._log is not None
        self._abandon_waiting()
        if not await self._log.flush(self._options.revoke_flush_s):
            _LOG.warning("not everything was committed before the rebalance")
        if self._partitions:
            REBALANCES.add(1, {OUTCOME: "revoked"})
        self._before, self._partitions = self._before | self._partitions, {}
        self.trackers.clear()

    async def _take_over(
        self, positions: Mapping[TopicPartition, Position], generation: int
    ) -> None:
        recovered = await asyncio.to_thread(self._recover, positions)
        for key in recovered.answered:
            self._answered.add(key)
        if generation != self._epoch:
            return  # partitions moved again: what is still owned is being recovered anew
        for partition in positions:
            state = self._partitions.get(partition)
            if state is not None:
                state.resumptions = dict(recovered.resumptions.get(partition, {}))
                state.recovering = False
                self._advance(partition, state)
        self._pump()

    # Records come in.

    def take(self, partition: TopicPartition, records: Iterable[Record]) -> None:
        """Records of one partition in offset order; those of partitions not owned are passed."""
        state = self._partitions.get(partition)
        if state is None or self._draining:
            return
        state.held.extend(records)
        self._advance(partition, state)

    def pump(self) -> None:
        """Start what may start. Call after :meth:`take`."""
        self._pump()

    def cancel(self, event: GenerationCancellation) -> None:
        """Stop a request that runs, waits, or is still to come."""
        self._handler.cancel(event)
        for job in self._jobs.of(event.request_id):
            self._hurry(job)

    async def run(self) -> None:
        """Look after deadlines, the engine's load and paused partitions until cancelled."""
        while True:
            await asyncio.sleep(TICK_S)
            now = self._now_ms()
            while self._deadlines and self._deadlines[0][0] <= now:
                self._hurry(heapq.heappop(self._deadlines)[2])
            for partition, state in list(self._partitions.items()):
                self._advance(partition, state)
            self._batch.update(
                self._load(),
                time.monotonic(),
                ready_interactive=self._scheduler.ready_interactive,
                batch_tokens=self._scheduler.inflight_batch_tokens,
            )
            self._pump()

    def _advance(self, partition: TopicPartition, state: _Partition) -> None:
        """Work through what is held, as far as the bounds allow, and set the flow by them."""
        if not state.recovering:
            while state.held and not self._is_full(partition, state):
                self._deliver(partition, state, state.held.popleft())
        full = state.recovering or bool(state.held) or self._is_full(partition, state)
        if full != state.paused:
            state.paused = full
            (self._flow.pause if full else self._flow.resume)(partition)

    def _is_full(self, partition: TopicPartition, state: _Partition) -> bool:
        interactive = self._scheduler.queued_interactive
        batch = self._scheduler.queued - interactive
        queued = batch if partition.topic == REQUESTS_BATCH.name else interactive
        return queued >= self._options.max_queued or state.tracker.window >= WINDOW

    def _deliver(self, partition: TopicPartition, state: _Partition, record: Record) -> None:
        known = self._jobs.at(partition, record.offset)
        resumption = state.resumptions.pop(record.offset, None)
        if known is not None:
            started = known.started_ms
        else:
            started = state.since_ms if resumption is not None else self._now_ms()
        base = state.tracker.base
        if not state.tracker.deliver(record.offset, started):
            if state.tracker.base != base:
                # An earlier owner finished it: no outcome of it will carry the new base.
                assert self._log is not None
                self._log.touch([partition])
            return
        if known is not None:
            # Taken before the partitions were dealt out again, and not committed.
            if known.outcome is not None:
                self._put(known.outcome)
            return
        self._accept(partition, record, started, resumption)

    def _accept(
        self,
        partition: TopicPartition,
        record: Record,
        started_ms: int,
        resumption: Resumption | None = None,
    ) -> None:
        prepared = self._handler.prepare(record)
        key = prepared.key
        if key is not None:
            if key in self._answered:
                DUPLICATES.add(1, {REASON: "answered"})
                self._put(Outcome(partition, record.offset, None))
                return
            first = self._jobs.same(key)
            if first is not None:
                DUPLICATES.add(1, {REASON: "running"})
                first.followers.append((partition, record))
                return
        job = Job(partition, prepared, started_ms, time.monotonic(), resumption=resumption)
        self._jobs.add(job)
        if not prepared.cost or resumption is not None:
            # No work for the engine, or work that had been admitted before.
            self._launch(job)
            return
        request = prepared.request
        assert request is not None
        job.ticket = Ticket(
            cost=prepared.cost,
            payload=job,
            tenant=request.tenant,
            priority=job.priority,
        )
        self._scheduler.offer(job.ticket)
        if prepared.deadline_ms is not None:
            self._serial += 1
            heapq.heappush(self._deadlines, (prepared.deadline_ms, self._serial, job))
        REQUESTS_QUEUED.add(1, job.counted_as)

    # Jobs run.

    def _pump(self) -> None:
        if self._draining or not self._scheduler.queued:
            return
        limit = self._batch.limit_tokens
        for ticket in self._scheduler.admit(self._load(), batch_tokens=limit):
            self._unqueued(ticket.payload, ticket)
            self._launch(ticket.payload)

    def _hurry(self, job: Job) -> None:
        """It will not run: let it end at once instead of waiting for its turn."""
        if job.task is None and job.ticket is not None and self._scheduler.cancel(job.ticket):
            job.ticket = None
            REQUESTS_QUEUED.add(-1, job.counted_as)
            self._launch(job)

    @staticmethod
    def _unqueued(job: Job, ticket: Ticket[Job]) -> None:
        REQUESTS_QUEUED.add(-1, job.counted_as)
        attributes = dict(job.counted_as)
        if ticket.tenant is not None:
            attributes[TENANT] = bounded_tenant(ticket.tenant)
        ADMISSION_WAIT.record(time.monotonic() - job.taken_s, attributes)

    def _launch(self, job: Job) -> None:
        task = job.task = asyncio.create_task(self._run(job))
        self._tasks.add(task)
        REQUESTS_IN_FLIGHT.add(1, job.counted_as)
        # Not within the task: one that is cancelled before it starts runs nothing at all.
        task.add_done_callback(partial(self._stopped, job, job.ticket))

    async def _run(self, job: Job) -> int:
        """Returns the tokens it took."""
        ended: Ended[Outgoing] = await self._handler.run(
            job.prepared,
            epoch=self._epoch,
            resumption=job.resumption,
            on_first_token=self._observer(job.ticket),
        )
        if job in self._jobs:
            job.outcome = Outcome(*job.place, ended.record, lambda: self._committed(job))
            tracker = self.trackers.get(job.partition)
            # Else its partition was dealt out again: it is put when the record is delivered.
            if tracker is not None and tracker.is_open(job.place[1]):
                self._put(job.outcome)
        return ended.tokens

    def _stopped(self, job: Job, ticket: Ticket[Job] | None, task: asyncio.Task[int]) -> None:
        self._tasks.discard(task)
        REQUESTS_IN_FLIGHT.add(-1, job.counted_as)
        failed = self._check(task)
        if not task.cancelled():
            self._processed(job, task.exception() or job.prepared.problem)
        if ticket is not None:
            used = None if failed else min(task.result(), ticket.cost)
            self._scheduler.release(ticket, used)
        self._pump()

    def _processed(self, job: Job, problem: BaseException | None) -> None:
        """``problem``: what became of it instead of an answer."""
        attributes = measured("process", job.partition.topic, group=self._group)
        if problem is not None:
            attributes[ERROR_TYPE] = type(problem).__qualname__
        # Its exemplar leads to the request's trace.
        context = extract(job.prepared.record.headers) if is_recording() else None
        MESSAGING_PROCESS_DURATION.record(time.monotonic() - job.taken_s, attributes, context)

    def _check(self, task: asyncio.Task[int] | asyncio.Task[None]) -> bool:
        """Whether it came to no end. An error is fatal."""
        if task.cancelled():
            return True
        error = task.exception()
        if error is not None:
            _LOG.error("a request could not be brought to an end", exc_info=error)
            self._on_fatal(error)
        return error is not None

    def _observer(self, ticket: Ticket[Job] | None) -> Callable[[float], None] | None:
        """Tells the batch window how long an interactive request waited, and beside what."""
        if ticket is None or ticket.priority != "interactive":
            return None
        before = self._scheduler.inflight_batch_tokens > 0

        def observe(ttft_s: float) -> None:
            beside_batch = before or self._scheduler.inflight_batch_tokens > 0
            self._batch.observe_ttft(ttft_s, beside_batch, time.monotonic())

        return observe

    def _recovered(self, task: asyncio.Task[None]) -> None:
        self._recoveries.discard(task)
        self._check(task)

    def _put(self, outcome: Outcome) -> None:
        assert self._log is not None
        self._log.put(outcome)

    def _committed(self, job: Job) -> None:
        self._jobs.forget(job)
        if job.prepared.key is not None:
            self._answered.add(job.prepared.key)
        for partition, record in job.followers:
            self._put(Outcome(partition, record.offset, None))
        job.release()

    def _abandon_waiting(self) -> None:
        for job in self._jobs:
            if not job.begun:
                self._abandon(job)

    def _abandon(self, job: Job) -> None:
        """Its partition went to another worker, or will be delivered again."""
        self._jobs.forget(job)
        if job.task is not None:
            job.task.cancel()
        elif job.ticket is not None and self._scheduler.cancel(job.ticket):
            REQUESTS_QUEUED.add(-1, job.counted_as)
        for partition, record in job.followers:
            if partition != job.partition and partition in self._partitions:
                self._accept(partition, record, job.started_ms)
        job.release()

    # What is stored, what is told.

    def position(self, partition: TopicPartition) -> Position | None:
        """What to commit for a partition now."""
        state = self._partitions[partition]
        position = state.tracker.position(self._now_ms())
        if position is not None and (state.resumptions or state.recovering) and state.since_ms:
            since = min(position.since_ms, state.since_ms)
            position = Position(position.base, position.finished, since)
        return position

    def health(self) -> list[PartitionHealth]:
        """Every owned partition."""
        now = self._now_ms()
        return [
            PartitionHealth(
                partition=partition,
                unfinished=state.tracker.unfinished,
                window=state.tracker.window,
                held=len(state.held),
                oldest_s=(now - (state.tracker.oldest_ms or now)) / 1000,
            )
            for partition, state in sorted(self._partitions.items())
        ]

    async def drain(self, timeout_s: float) -> bool:
        """Start nothing new, let what runs end and commit it; ``True`` if all of it did.

        What did not end is cancelled: its next owner goes on from what was emitted.
        """
        assert self._log is not None
        self._draining = True
        deadline = time.monotonic() + timeout_s
        self._abandon_waiting()
        left: AbstractSet[asyncio.Task[int]] = set()
        if self._tasks:
            _, left = await asyncio.wait(set(self._tasks), timeout=timeout_s)
        for task in left:
            task.cancel()
        flushed = await self._log.flush(max(2.0, deadline - time.monotonic()))
        return flushed and not left
