"""Workers, a model of the broker, and everything that can go wrong between them.

A state machine: requests arrive, run and end in any order; partitions are dealt out again;
workers crash, freeze through a rebalance and wake up; commits fail; records are fetched twice.
Whatever the order, each request's result stands exactly once on the topic.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import pytest
from aiokafka.structs import TopicPartition as BrokerPartition
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from infra.contracts.bus import Record, TopicPartition
from infra.contracts.catalogue import REQUESTS
from infra.contracts.events.generation import GenerationCancellation, GenerationRequest
from stream_workers import outcomes
from stream_workers.admission import Limits, Scheduler
from stream_workers.dispatcher import Dispatcher, DispatchOptions
from stream_workers.engine import EngineLoad
from stream_workers.handler import Ended, Prepared
from stream_workers.offsets import Position
from stream_workers.outcomes import OutcomeLog
from stream_workers.recovery import Recovered
from stream_workers.slack import BatchPolicy, BatchWindow
from stream_workers.transactions import (
    Committed,
    GroupMember,
    Outgoing,
    OwnershipLost,
    TransactionFailed,
)

PARTITIONS = [TopicPartition(REQUESTS.name, index) for index in range(3)]


class Broker:
    """Logs, stored positions, results, and the group's generation."""

    def __init__(self) -> None:
        self.logs: dict[TopicPartition, list[Record]] = {p: [] for p in PARTITIONS}
        self.stored: dict[TopicPartition, Committed] = {}
        self.results: list[bytes] = []
        self.generation = 0
        self.failures = 0
        self.next_offset = 0

    def publish(self, partition: TopicPartition, name: str, gap: int = 1) -> None:
        self.next_offset += gap
        self.logs[partition].append(
            Record(
                topic=partition.topic,
                partition=partition.partition,
                offset=self.next_offset,
                timestamp_ms=0,
                key=None,
                value=name.encode(),
            )
        )


class Writer:
    """Refuses members of an older generation, and fails when told to."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    async def commit(
        self,
        records: list[Outgoing],
        offsets: Mapping[BrokerPartition, Committed],
        member: GroupMember,
    ) -> None:
        await asyncio.sleep(0)
        if member.generation != self._broker.generation:
            raise OwnershipLost("an older generation")
        if self._broker.failures:
            self._broker.failures -= 1
            raise TransactionFailed("as told")
        self._broker.results += [record.value or b"" for record in records]
        for where, committed in offsets.items():
            self._broker.stored[TopicPartition(where.topic, where.partition)] = committed


class Handler:
    """Requests end when the test says so."""

    def __init__(self) -> None:
        self.running: dict[str, asyncio.Future[None]] = {}

    def prepare(self, record: Record) -> Prepared:
        name = (record.value or b"").decode()
        request = GenerationRequest(request_id=name, submit_id="s", prompt=name, created_at_ms=0)
        return Prepared(record=record, received_s=0, request=request, cost=1)

    def cancel(self, event: GenerationCancellation) -> None: ...

    async def run(self, prepared: Prepared, **_: Any) -> Ended[Outgoing]:
        assert prepared.request is not None
        name = prepared.request.request_id
        future = self.running[name] = asyncio.get_running_loop().create_future()
        try:
            await future
        finally:
            if self.running.get(name) is future:
                del self.running[name]
        return Ended(record=Outgoing("results", None, name.encode()))


class Worker:
    """One dispatcher with its log, its place in each partition, and its tasks."""

    def __init__(self, broker: Broker, name: str) -> None:
        self.broker = broker
        self.name = name
        self.frozen = False
        self.paused: set[TopicPartition] = set()
        self.at: dict[TopicPartition, int] = {}
        self.failed: list[BaseException] = []
        self.handler = Handler()
        self.dispatcher = Dispatcher(
            handler=self.handler,  # type: ignore[arg-type]
            scheduler=Scheduler(Limits(max_inflight_tokens=4)),
            batch=BatchWindow(BatchPolicy(max_tokens=4), 0.0),
            load=lambda: EngineLoad(running=0, waiting=0, kv_cache_usage=0.0, kv_tokens=1),
            recover=self._recover,
            flow=self,
            on_fatal=self.failed.append,
            now_ms=lambda: 1,
            options=DispatchOptions(max_queued=5, revoke_flush_s=0.05),
        )
        self.log = OutcomeLog(
            Writer(broker),
            prefix="",
            trackers=self.dispatcher.trackers,
            position=self.dispatcher.position,
        )
        self.dispatcher.bind(self.log)
        self.tasks = [asyncio.ensure_future(self.log.run())]

    def _recover(self, positions: Mapping[TopicPartition, Position]) -> Recovered:
        """What is finished was answered: the requests topic remembers it."""
        answered = [
            ((record.value or b"").decode(), "s")
            for partition, position in positions.items()
            for record in self.broker.logs[partition]
            if position.is_finished(record.offset)
        ]
        return Recovered(answered=answered)

    def pause(self, partition: TopicPartition) -> None:
        self.paused.add(partition)

    def resume(self, partition: TopicPartition) -> None:
        self.paused.discard(partition)

    async def assign(self, partitions: Iterable[TopicPartition]) -> None:
        stored = {
            partition: self.broker.stored.get(partition, Committed(0, ""))
            for partition in partitions
        }
        member = GroupMember("group", self.broker.generation, self.name)
        self.paused.clear()
        self.at = await self.dispatcher.opened(stored, member)

    def fetch(self, count: int) -> None:
        for partition, at in list(self.at.items()):
            if partition in self.paused:
                continue
            records = [r for r in self.broker.logs[partition] if r.offset >= at][:count]
            if records:
                self.at[partition] = records[-1].offset + 1
                self.dispatcher.take(partition, records)
        self.dispatcher.pump()

    def rewind(self) -> None:
        """Fetch again from what is stored, as Faust may at any time."""
        for partition in self.at:
            self.at[partition] = self.broker.stored.get(partition, Committed(0, "")).offset

    def kill(self) -> None:
        every = [*self.tasks, *self.dispatcher._tasks, *self.dispatcher._recoveries]
        for task in every:
            task.cancel()

    @property
    def busy(self) -> bool:
        return bool(self.dispatcher._recoveries)


class Platform(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.broker = Broker()
        self.names: list[str] = []
        self.workers: list[Worker] = []
        self._do(self._start())

    def _do(self, work: Any) -> None:
        self.loop.run_until_complete(work)
        self.loop.run_until_complete(self._settle())
        for worker in self.workers:
            assert not worker.failed

    async def _settle(self) -> None:
        """Until nothing is left to do by itself. Takeovers run in threads."""
        for _ in range(30):
            await asyncio.sleep(0)
        while any(worker.busy for worker in self.workers):  # noqa: ASYNC110 - a thread's end
            await asyncio.sleep(0.001)
        for _ in range(30):
            await asyncio.sleep(0)

    async def _start(self) -> None:
        self.workers.append(Worker(self.broker, f"w{len(self.workers)}"))
        await self._rebalance()

    async def _rebalance(self) -> None:
        """Frozen members miss it; the others flush, and get their share of the partitions."""
        awake = [worker for worker in self.workers if not worker.frozen]
        for worker in awake:
            await worker.dispatcher.revoking()
            worker.at = {}
        self.broker.generation += 1
        for index, worker in enumerate(awake):
            await worker.assign(PARTITIONS[index :: len(awake)])

    @rule(index=st.integers(0, 2), gap=st.integers(1, 3))
    def publish(self, index: int, gap: int) -> None:
        self.names.append(f"r{len(self.names)}")
        self.broker.publish(PARTITIONS[index], self.names[-1], gap)

    @precondition(lambda self: self.names)
    @rule(data=st.data())
    def publish_again(self, data: st.DataObject) -> None:
        """The same request and submit id, in the same partition."""
        name = data.draw(st.sampled_from(self.names))
        for partition, log in self.broker.logs.items():
            if any(record.value == name.encode() for record in log):
                self.broker.publish(partition, name)
                return

    @rule(count=st.integers(1, 4))
    def fetch(self, count: int) -> None:
        async def work() -> None:
            for worker in self.workers:
                worker.fetch(count)

        self._do(work())

    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        """Some request that runs ends, on whichever worker, frozen ones included."""
        running = [
            (worker, name) for worker in self.workers for name in sorted(worker.handler.running)
        ]
        if running:
            worker, name = data.draw(st.sampled_from(running))

            async def work() -> None:
                worker.handler.running[name].set_result(None)

            self._do(work())

    @rule(data=st.data(), turns=st.integers(0, 6), count=st.integers(1, 4))
    def end_while_records_come(self, data: st.DataObject, turns: int, count: int) -> None:
        """What ended is not committed yet when its record is delivered again."""
        running = [
            (worker, name) for worker in self.workers for name in sorted(worker.handler.running)
        ]
        if not running:
            return
        worker, name = data.draw(st.sampled_from(running))

        async def work() -> None:
            worker.handler.running[name].set_result(None)
            for _ in range(turns):
                await asyncio.sleep(0)
            worker.fetch(count)

        self._do(work())

    @rule()
    def rewind(self) -> None:
        for worker in self.workers:
            worker.rewind()

    @rule(times=st.integers(1, 2))
    def let_commits_fail(self, times: int) -> None:
        self.broker.failures = times

    @precondition(lambda self: len(self.workers) < 3)
    @rule()
    def join(self) -> None:
        self._do(self._start())

    @rule()
    def rebalance(self) -> None:
        self._do(self._rebalance())

    @precondition(lambda self: sum(not w.frozen for w in self.workers) > 1)
    @rule(data=st.data())
    def crash(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from(self.workers))
        if sum(not w.frozen for w in self.workers if w is not worker) == 0:
            return
        worker.kill()
        self.workers.remove(worker)
        self._do(self._rebalance())

    @precondition(lambda self: sum(not w.frozen for w in self.workers) > 1)
    @rule()
    def freeze(self) -> None:
        """It goes on working, but no longer hears from the group."""
        next(worker for worker in self.workers if not worker.frozen).frozen = True
        self._do(self._rebalance())

    @precondition(lambda self: any(w.frozen for w in self.workers))
    @rule()
    def wake(self) -> None:
        for worker in self.workers:
            worker.frozen = False
        self._do(self._rebalance())

    def teardown(self) -> None:
        """Run it to the end: every request has one result, and everything is committed."""
        if not hasattr(self, "loop"):
            return
        self.broker.failures = 0
        for worker in self.workers:
            worker.frozen = False
        self._do(self._rebalance())

        async def step() -> None:
            for worker in self.workers:
                worker.fetch(10)
            for worker in self.workers:
                for future in list(worker.handler.running.values()):
                    if not future.done():
                        future.set_result(None)
                for partition, state in worker.dispatcher._partitions.items():
                    worker.dispatcher._advance(partition, state)

        try:
            for _ in range(40):
                self._do(step())
            assert Counter(self.broker.results) == {name.encode(): 1 for name in self.names}
            for partition, log in self.broker.logs.items():
                if log:
                    assert self.broker.stored[partition].offset == log[-1].offset + 1
        finally:
            self._close()

    def _close(self) -> None:
        for worker in self.workers:
            worker.kill()
        self.loop.run_until_complete(self._settle())
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()


@pytest.fixture(autouse=True, scope="module")
def _no_waiting() -> Any:
    patch = pytest.MonkeyPatch()
    patch.setattr(outcomes, "RETRY_S", 0.0)
    yield
    patch.undo()


NO_SHRINK = (Phase.explicit, Phase.reuse, Phase.generate)
TestPlatform = Platform.TestCase
TestPlatform.settings = settings(
    max_examples=200, stateful_step_count=40, deadline=None, phases=NO_SHRINK
)
