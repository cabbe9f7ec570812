"""What is fetched around a seek is not lost: partitions move while a fetch is under way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock, MagicMock

import faust
import pytest
from faust.tables.recovery import ServiceStopped
from faust.types import TP

from infra.settings import KafkaSettings, WorkerSettings
from stream_workers.app import faust_app
from stream_workers.consumer import RequestConsumer, RequestTransport
from stream_workers.consumer_thread import ConsumerThread, Hold

PARTITION = TP("feedback.events", 0)


class Log:
    """A partition with a position, as aiokafka keeps it: what is fetched is passed over."""

    def __init__(self, records: Iterable[str]) -> None:
        self.records = list(records)
        self.position = 0
        self.arrived = asyncio.Event()
        self.assignment: Callable[[], set[TP]] = lambda: {PARTITION}
        self._max_poll_records = 500

    async def fetch(self) -> dict[TP, list[str]]:
        await self.arrived.wait()
        found, self.position = self.records[self.position :], len(self.records)
        return {PARTITION: found} if found else {}


class Thread(ConsumerThread):
    """On the loop of who asks, with the queue that a thread of its own would work off."""

    def __init__(self, log: Log) -> None:
        super().__init__(MagicMock(), thread_loop=asyncio.get_running_loop())
        self.log_of_broker = log

    def _ensure_consumer(self) -> Any:
        return self.log_of_broker

    async def _fetch_records(self, consumer: Any, *_: Any, **__: Any) -> Any:
        return await consumer.fetch()

    async def be_busy(self, until: asyncio.Event) -> None:
        """With as many calls as it takes up at once."""
        for _ in range(self.method_queue.num_workers):
            await self.method_queue.call(asyncio.Future(), until.wait)


@pytest.fixture
def log() -> Log:
    return Log(["a", "b"])


@pytest.fixture
async def thread(log: Log) -> AsyncIterator[Thread]:
    started = Thread(log)
    await started.method_queue.start()
    yield started
    await started.method_queue.stop()


@pytest.fixture
def consumer(thread: Thread) -> Any:
    return SimpleNamespace(_seeks=0, _thread=thread)


async def test_a_fetch_whose_asker_is_gone_ends_before_the_seek(log: Log, thread: Thread) -> None:
    asked = asyncio.create_task(thread.getmany({PARTITION}, 0.1))
    await asyncio.sleep(0.01)
    # As Faust does when partitions move.
    asked.cancel()
    hold = Hold()
    held = asyncio.create_task(thread.hold(hold))
    await asyncio.sleep(0.01)
    assert not held.done()
    log.arrived.set()
    await held
    log.position = 0
    hold.release()
    assert await thread.getmany({PARTITION}, 0.1) == {PARTITION: ["a", "b"]}


async def test_nothing_is_fetched_while_it_is_held_however_often(log: Log, thread: Thread) -> None:
    log.arrived.set()
    first, second = Hold(), Hold()
    await thread.hold(first)
    await thread.hold(second)
    assert await thread.getmany({PARTITION}, 0.1) == {}
    first.release()
    assert await thread.getmany({PARTITION}, 0.1) == {}
    second.release()
    assert await thread.getmany({PARTITION}, 0.1) == {PARTITION: ["a", "b"]}


async def test_a_seek_that_is_cancelled_while_it_waits_holds_nothing(
    log: Log, thread: Thread, consumer: Any
) -> None:
    """As Faust does when partitions move again."""

    async def seek() -> None:
        async with RequestConsumer._seeking(consumer):
            pytest.fail("a fetch is under way")

    asked = asyncio.create_task(thread.getmany({PARTITION}, 0.1))
    await asyncio.sleep(0.01)
    seeking = asyncio.create_task(seek())
    await asyncio.sleep(0.01)
    seeking.cancel()
    log.arrived.set()
    await asked
    with pytest.raises(asyncio.CancelledError):
        await seeking
    log.position = 0
    assert await thread.getmany({PARTITION}, 0.1) == {PARTITION: ["a", "b"]}


@pytest.mark.parametrize("step", ["begin", "end"])
async def test_a_seek_that_is_cancelled_while_the_thread_is_busy_holds_nothing(
    step: str, log: Log, thread: Thread, consumer: Any
) -> None:
    """What it is asked meanwhile it never does: nothing would be fetched until it is restarted."""
    sought, idle = asyncio.Event(), asyncio.Event()

    async def seek() -> None:
        async with RequestConsumer._seeking(consumer):
            await sought.wait()

    if step == "begin":
        await thread.be_busy(idle)
    seeking = asyncio.create_task(seek())
    await asyncio.sleep(0.01)
    if step == "end":
        await thread.be_busy(idle)
    sought.set()
    await asyncio.sleep(0.01)
    seeking.cancel()
    await asyncio.wait([seeking])
    idle.set()
    log.arrived.set()
    assert await thread.getmany({PARTITION}, 0.1) == {PARTITION: ["a", "b"]}


async def test_a_hold_that_comes_behind_its_release_holds_nothing(log: Log, thread: Thread) -> None:
    log.arrived.set()
    hold = Hold()
    hold.release()
    await thread.hold(hold)
    assert await thread.getmany({PARTITION}, 0.1) == {PARTITION: ["a", "b"]}


async def test_what_was_asked_for_before_a_seek_is_not_fetched_after_it(
    log: Log, thread: Thread
) -> None:
    log.arrived.set()
    turn = thread._turn
    hold = Hold()
    await thread.hold(hold)
    hold.release()
    assert await thread._fetch(turn, log) == {}
    assert log.position == 0


class Positions:
    """A consumer's thread: as aiokafka, it seeks to what is committed, and only to that."""

    def __init__(self, committed: Mapping[TP, int | None], begins: Mapping[TP, int]) -> None:
        self.committed = committed
        self.begins = begins
        self.sought: dict[TP, int] = {}
        self.beacon = MagicMock()

    async def hold(self, hold: Hold) -> None:
        self.held_by = hold

    def assignment(self) -> set[TP]:
        return set(self.committed)

    async def seek_to_committed(self) -> Mapping[TP, int | None]:
        self.sought |= {tp: offset for tp, offset in self.committed.items() if offset}
        return self.committed

    async def earliest_offsets(self, *partitions: TP) -> Mapping[TP, int]:
        return {tp: self.begins[tp] for tp in partitions}

    def seek(self, tp: TP, offset: int) -> None:
        assert not self.held_by.released
        self.sought[tp] = offset


class Consumers:
    """Makes one, with the topics ``requests`` (the dispatcher's) and a table's changelog."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.app = faust.App("test", broker="aiokafka://127.0.0.1:1", store="memory://")
        self.changelog = self.app.Table("table", partitions=1).changelog_topic_name
        self.stored: dict[TP, int] = {}
        self._patch = monkeypatch

    def make(self, committed: Mapping[TP, int | None], begins: Mapping[TP, int]) -> Any:
        """Of a member that has been given these partitions."""
        transport = RequestTransport(
            self.app.conf.broker_consumer,
            self.app,
            prefix="",
            topics=["requests"],
            stored=self._nothing_stored,
        )
        revoking = AsyncMock()
        transport.intake = MagicMock(opened=self._opened, revoking=revoking)
        thread = Positions(committed, begins)
        self._patch.setattr(RequestConsumer, "_new_consumer_thread", lambda _: thread)
        self._patch.setattr(RequestConsumer, "member", MagicMock())
        ignored = AsyncMock()
        consumer = RequestConsumer(
            transport, ignored, on_partitions_revoked=ignored, on_partitions_assigned=ignored
        )
        self.app.consumer = consumer
        return consumer

    async def _nothing_stored(self, *_: Any, **__: Any) -> dict[Any, Any]:
        return {}

    async def _opened(self, found: Mapping[Any, Any], _: object) -> dict[Any, int]:
        self.stored.update({TP(*tp): each.offset for tp, each in found.items()})
        return {}


@pytest.fixture
def consumers(monkeypatch: pytest.MonkeyPatch) -> Consumers:
    return Consumers(monkeypatch)


async def test_where_nothing_is_committed_it_is_read_from_the_beginning_again(
    consumers: Consumers,
) -> None:
    """What a fetch took between the assignment and the seek was lost for a group's first member."""
    begins = {TP(topic, 0): 3 for topic in ("requests", "known", "fresh", "cleared")}
    committed = dict.fromkeys(begins, None) | {
        TP("known", 0): 7,
        TP("cleared", 0): 0,
        TP(consumers.changelog, 0): None,
    }
    consumer = consumers.make(committed, begins)
    await consumer.perform_seek()
    thread = consumer._thread
    assert thread.sought == {TP("known", 0): 7, TP("fresh", 0): 3, TP("cleared", 0): 3}
    assert consumers.stored == {TP("requests", 0): 3}
    assert thread.held_by.released


def fetches(
    consumer: Any, tp: TP, offsets: Iterable[int]
) -> Callable[[float], Coroutine[Any, Any, Any]]:
    """Lets it fetch them next."""

    async def fetched(_: float) -> Any:
        return {tp: [SimpleNamespace(offset=offset) for offset in offsets]}, {tp}

    def message(tp: TP, record: Any) -> Any:
        return MagicMock(tp=tp, offset=record.offset, topic=tp.topic, acked=False)

    consumer._wait_next_records, consumer._to_message = fetched, message
    return fetched


async def delivered(consumer: Any, tp: TP, offsets: Iterable[int]) -> list[Any]:
    """Messages that agents get of what was fetched."""
    fetches(consumer, tp, offsets)
    return [message async for _, message in consumer.getmany(1.0)]


def offsets_of(messages: Iterable[Any]) -> list[int]:
    return [message.offset for message in messages]


async def test_agents_get_nothing_between_a_revocation_and_the_seek_behind_it(
    consumers: Consumers,
) -> None:
    changelog = TP(consumers.changelog, 0)
    consumer = consumers.make({PARTITION: 5, changelog: None}, {PARTITION: 5})
    assert await delivered(consumer, PARTITION, [5]) == []
    assert offsets_of(await delivered(consumer, changelog, [9])) == [9]
    await consumer.perform_seek()
    assert offsets_of(await delivered(consumer, PARTITION, [5, 6])) == [5, 6]
    await consumer.on_partitions_revoked({PARTITION})
    assert await delivered(consumer, PARTITION, [7]) == []
    await consumer.perform_seek()
    assert offsets_of(await delivered(consumer, PARTITION, [5])) == [5]


async def test_a_seek_that_ends_behind_the_next_revocation_opens_nothing(
    consumers: Consumers,
) -> None:
    consumer = consumers.make({PARTITION: 5}, {PARTITION: 5})
    seek_to_committed = consumer.seek_to_committed

    async def revoked_meanwhile() -> Any:
        await consumer.on_partitions_revoked({PARTITION})
        return await seek_to_committed()

    consumer.seek_to_committed = revoked_meanwhile
    await consumer.perform_seek()
    assert not consumer.sought
    assert await delivered(consumer, PARTITION, [5]) == []


def to_commit(consumer: Any) -> dict[TP, int]:
    tps = consumer._filter_tps_with_pending_acks()
    return dict(consumer._filter_committable_offsets(tps))


async def test_nothing_is_committed_past_a_record_that_is_not_acknowledged(
    consumers: Consumers,
) -> None:
    """Faust passed over a single one. Between 7 and 12 are markers of transactions."""
    consumer = consumers.make({PARTITION: 5}, {PARTITION: 5})
    await consumer.perform_seek()
    assert to_commit(consumer) == {}
    first, second, third, last = await delivered(consumer, PARTITION, [5, 6, 7, 12])
    assert consumer.ack(second)
    assert consumer.ack(last)
    assert not consumer.ack(last)
    assert to_commit(consumer) == {}
    assert consumer.ack(first)
    assert to_commit(consumer) == {PARTITION: 7}
    assert consumer.ack(third)
    assert to_commit(consumer) == {PARTITION: 13}


async def test_what_is_acknowledged_after_a_revocation_is_left_to_who_gets_the_partition(
    consumers: Consumers,
) -> None:
    consumer = consumers.make({PARTITION: 5}, {PARTITION: 5})
    await consumer.perform_seek()
    first, second = await delivered(consumer, PARTITION, [5, 6])
    await consumer.on_partitions_revoked({PARTITION})
    assert not consumer.ack(first)
    await consumer.perform_seek()
    assert not consumer.ack(second)
    assert to_commit(consumer) == {}


@pytest.fixture
def app(tmp_path: Path) -> Any:
    """A worker's, whose consumer does nothing."""
    app = faust_app(
        KafkaSettings(bootstrap_servers="127.0.0.1:1"),
        WorkerSettings(),
        partitions=1,
        replicas=1,
        datadir=tmp_path,
        stored=AsyncMock(),
    )
    app.consumer = MagicMock(assignment=lambda: {PARTITION}, sought=False, perform_seek=AsyncMock())
    app._fetcher = MagicMock(maybe_start=AsyncMock())
    app.assignor = MagicMock()
    return app


@pytest.mark.parametrize("sought", [True, False])
async def test_what_comes_right_behind_the_seek_stays_in_the_agents_queues(
    app: Any, sought: bool
) -> None:
    """Faust resumes the flow a second time then, which emptied them.

    Where partitions were revoked during the seek, that is well.
    """
    queue = app.FlowControlQueue(clear_on_resume=True, maxsize=10)

    async def perform_seek() -> None:
        app.consumer.sought = sought
        await queue.put("sought")

    app.consumer.perform_seek = perform_seek
    queue.put_nowait("of before")
    # As it does when it has read the changelog, or has none to read.
    app.flow_control.resume()
    assert queue.empty()
    await app.tables.recovery.on_recovery_completed(app.consumer_generation_id)
    assert queue.qsize() == sought


async def test_a_worker_that_cannot_take_its_partitions_over_ends(app: Any) -> None:
    """Faust's recovery ended there without a word, and the partitions lay."""
    recovery = app.tables.recovery
    with pytest.raises(TimeoutError, match=r"more than 0\.01 s"):
        await recovery._wait(asyncio.sleep(60), timeout=0.01)
    await recovery.stop()
    with pytest.raises(ServiceStopped):
        await recovery._wait(asyncio.sleep(60), timeout=60)


async def test_what_was_fetched_before_a_seek_is_left_to_come_again() -> None:
    consumer: Any = SimpleNamespace(_seeks=0)

    async def fetch(*_: Any) -> Any:
        consumer._seeks += seeks
        return {PARTITION: ["a"]}

    consumer._thread = SimpleNamespace(getmany=fetch)
    seeks = 1
    assert await RequestConsumer._getmany(consumer, {PARTITION}, 0.1) == {}
    seeks = 0
    assert await RequestConsumer._getmany(consumer, {PARTITION}, 0.1) == {PARTITION: ["a"]}


@pytest.mark.parametrize(("seeks", "found"), [("before the fetch", [5, 6]), ("then", [5])])
async def test_records_are_given_until_the_next_seek(
    consumers: Consumers, seeks: str, found: list[int]
) -> None:
    consumer = consumers.make({PARTITION: 5}, {PARTITION: 5})
    await consumer.perform_seek()
    fetched, given = fetches(consumer, PARTITION, [5, 6]), []

    async def once_the_flow_goes(timeout: float) -> Any:
        # As long as the flow is stopped, the fetch has not begun.
        consumer._seeks += seeks == "before the fetch"
        return await fetched(timeout)

    consumer._wait_next_records = once_the_flow_goes
    async for _, message in consumer.getmany(1.0):
        given.append(message.offset)
        consumer._seeks += seeks == "then"
    assert given == found
