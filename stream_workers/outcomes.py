"""Commits what ended: outcomes and the positions that say so, many in one transaction.

While one transaction runs, and until the next is due, what ends meanwhile gathers for it, so the
cost of a transaction is shared by as many requests as the load brings. The first after a pause
starts at once.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import Protocol

from aiokafka.structs import TopicPartition as BrokerPartition
from opentelemetry import trace

from infra.contracts.bus import TopicPartition
from infra.contracts.errors import FatalError
from observability.instruments import (
    COMMIT_DURATION,
    COMMIT_SIZE,
    ERROR_TYPE,
    MESSAGES_SENT,
    MESSAGING_OPERATION_DURATION,
)
from observability.messaging import committing, measured
from stream_workers.offsets import OffsetTracker, Position, encode_metadata
from stream_workers.transactions import (
    Committed,
    GroupMember,
    Outgoing,
    OwnershipLost,
    TransactionFailed,
)

_LOG = logging.getLogger(__name__)
_TRACER = trace.get_tracer("feedloom.stream_workers")

MAX_RECORDS = 2_000
RETRY_S = 0.2
GIVE_UP_S = 120.0
INTERVAL_S = 0.025
"""Between two transactions of a worker with few requests in flight."""


class CommitsFail(FatalError):
    """No transaction succeeded for long. The process stops; its work is delivered again."""


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """The end of one request. ``record`` is ``None`` for a duplicate: its offset is just passed."""

    partition: TopicPartition
    offset: int
    record: Outgoing | None
    committed: Callable[[], None] = lambda: None


class Writer(Protocol):
    """The one method of the transactional producer that is used here."""

    async def commit(
        self,
        records: list[Outgoing],
        offsets: Mapping[BrokerPartition, Committed],
        member: GroupMember,
    ) -> None:
        """See ``TransactionalProducer.commit``."""
        ...


class OutcomeLog:
    """Takes outcomes in any order and commits each once, while its partition is owned.

    ``trackers`` are those of the partitions owned now. ``position`` gives what is to be stored for
    one of them, ``interval_s`` the least time from the start of a transaction to the next, and
    ``on_commit`` is told which offsets stand now. What is not committed when partitions move is
    dropped here; its owner puts it again if the partition comes back.
    """

    def __init__(
        self,
        writer: Writer,
        *,
        prefix: str,
        trackers: Mapping[TopicPartition, OffsetTracker],
        position: Callable[[TopicPartition], Position | None],
        give_up_s: float = GIVE_UP_S,
        interval_s: Callable[[], float] = lambda: 0.0,
        on_commit: Callable[[Mapping[TopicPartition, int]], None] = lambda offsets: None,
    ) -> None:
        self._writer = writer
        self._prefix = prefix
        self._trackers = trackers
        self._position = position
        self._give_up_s = give_up_s
        self._interval_s = interval_s
        self._on_commit = on_commit
        self._last_start = -math.inf
        self._waiting: deque[Outcome] = deque()
        self._sending: list[Outcome] = []
        # Which tracker counts it as finished: an outcome that is sent again was claimed before,
        # one whose offset is finished already (by another owner) never is.
        self._claimed: dict[Outcome, OffsetTracker] = {}
        self._touched: set[TopicPartition] = set()
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._hurry = asyncio.Event()
        self._failing_since: float | None = None
        self.transactions = 0
        self.committed = 0
        self._member: GroupMember | None = None
        self._committing = asyncio.Lock()

    @property
    def failing_s(self) -> float:
        """For how long commits have been failing; 0 when the last one succeeded."""
        return 0.0 if self._failing_since is None else time.monotonic() - self._failing_since

    @property
    def waiting(self) -> int:
        """Outcomes that are not committed yet."""
        return len(self._waiting) + len(self._sending)

    def put(self, outcome: Outcome) -> None:
        """Commit this one with the next transaction."""
        self._waiting.append(outcome)
        self._idle.clear()
        self._wake.set()

    def touch(self, partitions: Iterable[TopicPartition]) -> None:
        """Store where these stand with the next transaction, whether anything ended or not."""
        self._touched.update(partitions)
        self._idle.clear()
        self._wake.set()

    async def run(self) -> None:
        """Commit until cancelled. Raises TransactionsFenced and CommitsFail."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._unsaved and self._member is not None:
                await self._until_due()
                async with self._committing:
                    await self._commit_some(self._member)
            if not self._unsaved:
                self._idle.set()

    @property
    def _unsaved(self) -> bool:
        return bool(self._waiting or self._touched)

    async def _until_due(self) -> None:
        left_s = self._last_start + self._interval_s() - time.monotonic()
        if left_s > 0:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._hurry.wait(), left_s)
        self._last_start = time.monotonic()

    async def flush(self, timeout_s: float) -> bool:
        """Wait until everything put so far is committed or dropped; ``False`` on timeout."""
        self._hurry.set()
        try:
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        except TimeoutError:
            return False
        finally:
            self._hurry.clear()
        return True

    async def suspend(self) -> None:
        """Let a commit that runs end, drop what waits, and commit nothing until :meth:`resume`."""
        self._member = None
        async with self._committing:
            self._waiting.clear()
            self._claimed.clear()
            self._touched.clear()
            self._idle.set()

    def resume(self, member: GroupMember) -> None:
        """Commit as ``member`` from now on."""
        self._member = member
        self._wake.set()

    async def _commit_some(self, member: GroupMember | None) -> None:
        if member is None:
            return
        while self._waiting and len(self._sending) < MAX_RECORDS:
            self._sending.append(self._waiting.popleft())
        started = time.monotonic()
        try:
            await self._commit(member)
        except OwnershipLost as error:
            _LOG.warning("the group has moved on: %s", error)
            self._member = None
            self._return_unsent()
        except TransactionFailed as error:
            self._failing_since = self._failing_since or started
            if self.failing_s > self._give_up_s:
                raise CommitsFail(f"no commit in {self._give_up_s:.0f} s: {error}") from error
            _LOG.warning("a commit failed and is tried again: %s", error)
            self._return_unsent()
            await asyncio.sleep(RETRY_S)
        else:
            self._failing_since = None

    def _return_unsent(self) -> None:
        self._waiting.extendleft(reversed(self._sending))
        self._sending = []

    async def _commit(self, member: GroupMember) -> None:
        ours: list[Outcome] = []
        for outcome in self._sending:
            tracker = self._trackers.get(outcome.partition)
            if tracker is None:
                continue
            if self._claimed.get(outcome) is tracker:
                ours.append(outcome)
            elif tracker.finish(outcome.offset):
                self._claimed[outcome] = tracker
                ours.append(outcome)
        self._sending = ours
        touched = self._touched & self._trackers.keys()
        offsets: dict[BrokerPartition, Committed] = {}
        bases: dict[TopicPartition, int] = {}
        for partition in touched | {outcome.partition for outcome in ours}:
            position = self._position(partition)
            if position is not None:
                where = BrokerPartition(self._prefix + partition.topic, partition.partition)
                offsets[where] = Committed(position.base, encode_metadata(position))
                bases[partition] = position.base
        if not offsets:
            self._touched.clear()
            return
        records = [outcome.record for outcome in ours if outcome.record is not None]
        with (
            nullcontext()
            if not records
            else committing(
                _TRACER,
                [
                    partition.topic
                    for partition in touched | {outcome.partition for outcome in ours}
                ],
                [record.headers for record in records],
                group=member.group_id,
            )
        ):
            started = time.monotonic()
            try:
                await self._writer.commit(records, offsets, member)
            except (OwnershipLost, TransactionFailed) as error:
                _measure(started, member, error)
                raise
            _measure(started, member)
        self._on_commit(bases)
        COMMIT_SIZE.record(len(ours))
        for topic, count in Counter(record.topic for record in records).items():
            MESSAGES_SENT.add(count, measured("send", topic.removeprefix(self._prefix)))
        self.transactions += 1
        self.committed += len(ours)
        self._sending = []
        self._touched -= touched
        for outcome in ours:
            del self._claimed[outcome]
            outcome.committed()


def _measure(started_s: float, member: GroupMember, error: BaseException | None = None) -> None:
    failed = {} if error is None else {ERROR_TYPE: type(error).__qualname__}
    took_s = time.monotonic() - started_s
    COMMIT_DURATION.record(took_s, failed)
    commit = measured("commit", group=member.group_id)
    MESSAGING_OPERATION_DURATION.record(took_s, commit | failed)
