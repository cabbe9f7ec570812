"""What is fetched around a seek is not lost: partitions move while a fetch is under way."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import faust
import pytest
from faust.types import TP

from stream_workers.consumer import RequestConsumer, RequestTransport, _ReadCommittedThread

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


class Thread(_ReadCommittedThread):
    """Calls what it would have its thread call, and goes on when who asked has gone."""

    def __init__(self, log: Log) -> None:
        super().__init__(MagicMock(), thread_loop=asyncio.get_running_loop())
        self.log_of_broker = log

    def _ensure_consumer(self) -> Any:
        return self.log_of_broker

    async def call_thread(
        self, fun: Callable[..., Awaitable[Any]], *args: Any, **named: Any
    ) -> Any:
        return await asyncio.shield(asyncio.ensure_future(fun(*args, **named)))

    async def _fetch_records(self, consumer: Any, *_: Any, **__: Any) -> Any:
        return await consumer.fetch()


async def test_a_fetch_whose_asker_is_gone_ends_before_the_seek() -> None:
    log = Log(["a", "b"])
    thread = Thread(log)
    asked = asyncio.create_task(thread.getmany({PARTITION}, 0.1))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    # As Faust does when partitions move.
    asked.cancel()
    held = asyncio.create_task(thread.hold(1))
    await asyncio.sleep(0.01)
    assert not held.done()
    log.arrived.set()
    await held
    log.position = 0
    await thread.release(1)
    assert await thread.getmany({PARTITION}, 0.1) == {PARTITION: ["a", "b"]}


async def test_nothing_is_fetched_while_it_is_held_however_often() -> None:
    log = Log(["a"])
    log.arrived.set()
    thread = Thread(log)
    await thread.hold(1)
    await thread.hold(2)
    assert await thread.getmany({PARTITION}, 0.1) == {}
    await thread.release(1)
    assert await thread.getmany({PARTITION}, 0.1) == {}
    await thread.release(2)
    assert await thread.getmany({PARTITION}, 0.1) == {PARTITION: ["a"]}


async def test_a_seek_that_is_cancelled_while_it_waits_holds_nothing() -> None:
    """As Faust does when partitions move again."""
    log = Log(["a"])
    thread = Thread(log)
    consumer: Any = SimpleNamespace(_seeks=0, _thread=thread)

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
    assert await thread.getmany({PARTITION}, 0.1) == {PARTITION: ["a"]}


async def test_a_hold_that_comes_behind_its_release_holds_nothing() -> None:
    log = Log(["a"])
    log.arrived.set()
    thread = Thread(log)
    await thread.release(1)
    await thread.hold(1)
    assert await thread.getmany({PARTITION}, 0.1) == {PARTITION: ["a"]}


async def test_what_was_asked_for_before_a_seek_is_not_fetched_after_it() -> None:
    log = Log(["a"])
    log.arrived.set()
    thread = Thread(log)
    turn = thread._turn
    await thread.hold(1)
    await thread.release(1)
    assert await thread._fetch(turn, log) == {}
    assert log.position == 0


class Positions:
    """A consumer's thread: as aiokafka, it seeks to what is committed, and only to that."""

    def __init__(self, committed: Mapping[TP, int | None], begins: Mapping[TP, int]) -> None:
        self.committed = committed
        self.begins = begins
        self.sought: dict[TP, int] = {}
        self.beacon = MagicMock()

    async def hold(self, _: object) -> None:
        self.held = True

    async def release(self, _: object) -> None:
        self.held = False

    def assignment(self) -> set[TP]:
        return set(self.committed)

    async def seek_to_committed(self) -> Mapping[TP, int | None]:
        self.sought |= {tp: offset for tp, offset in self.committed.items() if offset}
        return self.committed

    async def earliest_offsets(self, *partitions: TP) -> Mapping[TP, int]:
        return {tp: self.begins[tp] for tp in partitions}

    def seek(self, tp: TP, offset: int) -> None:
        assert self.held
        self.sought[tp] = offset


async def test_where_nothing_is_committed_it_is_read_from_the_beginning_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What a fetch took between the assignment and the seek was lost for a group's first member."""
    app = faust.App("test", broker="aiokafka://127.0.0.1:1", store="memory://")
    table = app.Table("table", partitions=1)
    stored: dict[TP, int] = {}

    async def nothing_stored(*_: Any, **__: Any) -> dict[Any, Any]:
        return {}

    async def opened(found: Mapping[Any, Any], _: object) -> dict[Any, int]:
        stored.update({TP(*tp): each.offset for tp, each in found.items()})
        return {}

    transport = RequestTransport(
        app.conf.broker_consumer, app, prefix="", topics=["requests"], stored=nothing_stored
    )
    transport.intake = MagicMock(opened=opened)
    begins = {TP(topic, 0): 3 for topic in ("requests", "known", "fresh", "cleared")}
    committed = dict.fromkeys(begins, None) | {
        TP("known", 0): 7,
        TP("cleared", 0): 0,
        TP(table.changelog_topic_name, 0): None,
    }
    thread = Positions(committed, begins)
    monkeypatch.setattr(RequestConsumer, "_new_consumer_thread", lambda _: thread)
    monkeypatch.setattr(RequestConsumer, "member", MagicMock())
    ignored = MagicMock()
    consumer = RequestConsumer(
        transport, ignored, on_partitions_revoked=ignored, on_partitions_assigned=ignored
    )
    await consumer.perform_seek()
    assert thread.sought == {TP("known", 0): 7, TP("fresh", 0): 3, TP("cleared", 0): 3}
    assert stored == {TP("requests", 0): 3}
    assert not thread.held


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


@pytest.mark.parametrize(("seeks", "found"), [("before the fetch", ["a", "b"]), ("then", ["a"])])
async def test_records_are_given_until_the_next_seek(seeks: str, found: list[str]) -> None:
    async def fetched(_: float) -> Any:
        # As long as the flow is stopped, the fetch has not begun.
        consumer._seeks += seeks == "before the fetch"
        return {PARTITION: ["a", "b"]}, {PARTITION}

    transport = SimpleNamespace(
        topics={}, prefix="", intake=SimpleNamespace(pump=lambda: None, take=lambda *_: None)
    )
    consumer: Any = SimpleNamespace(
        _seeks=3,
        _wait_next_records=fetched,
        _intake=transport,
        app=SimpleNamespace(consumer_generation_id=1, conf=SimpleNamespace(id="g")),
        should_stop=False,
        flow_active=True,
        scheduler=SimpleNamespace(
            iterate=lambda some: ((tp, each) for tp in some for each in some[tp])
        ),
        _buffered_partitions=set(),
        _to_message=lambda tp, record: record,
    )
    given = []
    async for _, record in RequestConsumer.getmany(consumer, 1.0):
        given.append(record)
        consumer._seeks += seeks == "then"
    assert given == found
