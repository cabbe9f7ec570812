"""The join's agents at the same answer, and when what they took in is acknowledged."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import faust
import pytest

from infra.contracts.catalogue import EXAMPLES, FEEDBACK, RESULTS
from infra.contracts.codec import encode
from infra.contracts.events.feedback import FeedbackExample, FeedbackReceived
from infra.contracts.events.generation import GenerationResult
from stream_workers.join_agents import FeedbackJoin
from stream_workers.join_table import JoinTable
from tests.joining import result

RESULT = result()


def word(number: int) -> FeedbackReceived:
    return FeedbackReceived(
        feedback_id=f"f{number}", request_id="r", created_at_ms=number, rating="up"
    )


class Table:
    """Keeps what is written at once; when that is on the changelog is the test's to say."""

    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {}

    def get(self, key: bytes) -> bytes | None:
        return self.values.get(key)

    def write(self, key: bytes, value: bytes) -> asyncio.Future[None]:
        self.values[key] = value
        return asyncio.get_running_loop().create_future()

    def sweep(self, most: int) -> list[bytes]:
        return []


class Sink:
    """Holds examples back until it is opened."""

    def __init__(self) -> None:
        self.opened = asyncio.Event()
        self.examples: list[FeedbackExample] = []
        self.came = asyncio.Semaphore(0)

    async def example(self, example: FeedbackExample, _: object) -> int:
        offset = len(self.examples)
        self.examples.append(example)
        self.came.release()
        await self.opened.wait()
        return offset


def event(of: GenerationResult | FeedbackReceived) -> Any:
    topic = RESULTS.name if isinstance(of, GenerationResult) else FEEDBACK.name
    message = SimpleNamespace(
        topic=topic, partition=0, offset=0, timestamp=1.0, key=b"r", value=encode(of), headers=()
    )
    return SimpleNamespace(message=message)


def make() -> tuple[Any, Sink]:
    sink = Sink()
    app = faust.App("test", Table=JoinTable)
    join: Any = FeedbackJoin(app, prefix="", sink=sink, partitions=1, window_s=60)  # type: ignore[arg-type]
    join._table = Table()
    return join, sink


async def test_a_word_that_comes_while_the_results_example_is_sent_is_not_lost() -> None:
    join, sink = make()
    await join._join(event(word(1)), FeedbackReceived)
    result = asyncio.create_task(join._join(event(RESULT), GenerationResult))
    await sink.came.acquire()
    second = asyncio.create_task(join._join(event(word(2)), FeedbackReceived))
    await sink.came.acquire()
    sink.opened.set()
    await asyncio.gather(result, second)
    third = await join._join(event(word(3)), FeedbackReceived)
    assert third is not None
    assert [example.feedback_ids for example in sink.examples] == [
        ("f1",),
        ("f1", "f2"),
        ("f1", "f2", "f3"),
    ]


async def test_what_was_written_and_not_published_is_published_when_it_comes_again() -> None:
    join, sink = make()
    await join._join(event(word(1)), FeedbackReceived)
    for _ in range(2):
        task = asyncio.create_task(join._join(event(RESULT), GenerationResult))
        await sink.came.acquire()
        # As if the process had ended here.
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert [example.feedback_ids for example in sink.examples] == [("f1",)]
        sink.examples.clear()


async def test_an_event_is_acknowledged_once_what_came_of_it_is_written() -> None:
    join, _ = make()
    written: list[asyncio.Future[None]] = []
    write = join._table.write
    join._table.write = lambda *item: written.append(write(*item)) or written[-1]
    acknowledged: list[int] = []
    # The second says nothing new: there is nothing to write.
    await join._join_all(stream([word(1), word(1), word(2)], acknowledged), FeedbackReceived)
    assert acknowledged == [1]
    written[1].set_result(None)
    await asyncio.sleep(0)
    assert acknowledged == [1, 2]
    written[0].set_result(None)
    await asyncio.sleep(0)
    assert acknowledged == [1, 2, 0]


async def test_a_state_that_cannot_be_written_ends_the_worker_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    join, _ = make()
    errors: list[BaseException] = []

    async def crash(error: BaseException) -> None:
        errors.append(error)

    monkeypatch.setattr(join._app, "crash", crash)
    written = [asyncio.get_running_loop().create_future() for _ in range(3)]
    left = iter(written)
    monkeypatch.setattr(join._table, "write", lambda *_: next(left))
    acknowledged: list[int] = []
    await join._join_all(stream([word(n) for n in range(3)], acknowledged), FeedbackReceived)
    problem = ConnectionError("no broker")
    written[1].set_exception(problem)
    written[2].set_exception(ConnectionError("none either"))
    written[0].set_result(None)
    for _ in range(5):
        await asyncio.sleep(0)
    assert errors == [problem]
    assert acknowledged == [0]


async def test_only_an_example_that_came_behind_what_was_published_is_put_right() -> None:
    join, sink = make()
    sink.opened.set()
    for one in (RESULT, word(1), word(2)):
        await join._join(event(one), type(one))
    first, second = sink.examples
    # Both come back as they were published, and then one that a worker sent that was cut off.
    acknowledged: list[int] = []
    await join._mind(stream([first, second, first], acknowledged))
    assert sink.examples == [first, second, second]
    assert acknowledged == [0, 1, 2]


async def test_nothing_is_put_right_while_another_is_on_its_way() -> None:
    join, sink = make()
    sink.opened.set()
    for one in (RESULT, word(1)):
        await join._join(event(one), type(one))
    sink.opened.clear()
    await sink.came.acquire()
    following = asyncio.create_task(join._join(event(word(2)), FeedbackReceived))
    await sink.came.acquire()
    await join._mind(stream(sink.examples[:1], []))
    sink.opened.set()
    await following
    assert [one.feedback_ids for one in sink.examples] == [("f1",), ("f1", "f2")]


def stream(told: Sequence[FeedbackExample | FeedbackReceived], acknowledged: list[int]) -> Any:
    """Of events of a topic, from its beginning."""

    async def events() -> Any:
        for offset, one in enumerate(told):
            yield SimpleNamespace(
                ack=lambda offset=offset: acknowledged.append(offset),
                message=SimpleNamespace(
                    topic=(EXAMPLES if isinstance(one, FeedbackExample) else FEEDBACK).name,
                    partition=0,
                    offset=offset,
                    timestamp=1.0,
                    key=b"r",
                    value=encode(one),
                    headers=(),
                ),
            )

    return SimpleNamespace(noack=lambda: SimpleNamespace(events=events))
