"""When outcomes are committed, and how many at once."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from aiokafka.structs import TopicPartition as BrokerPartition

from infra.contracts.bus import TopicPartition
from stream_workers.offsets import OffsetTracker, Position
from stream_workers.outcomes import Outcome, OutcomeLog
from stream_workers.transactions import Committed, GroupMember, Outgoing

PLACE = TopicPartition("t", 0)
MEMBER = GroupMember("g", 1, "m")


class Writer:
    def __init__(self) -> None:
        self.commits: list[int] = []

    async def commit(
        self,
        records: list[Outgoing],
        offsets: Mapping[BrokerPartition, Committed],
        member: GroupMember,
    ) -> None:
        self.commits.append(len(records))


async def _settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def test_outcomes_gather_until_a_commit_is_due_unless_they_are_waited_for() -> None:
    async def run() -> list[int]:
        writer, tracker = Writer(), OffsetTracker(Position(0))
        log = OutcomeLog(
            writer,
            prefix="",
            trackers={PLACE: tracker},
            position=lambda _: tracker.position(1),
            interval_s=lambda: 3600.0,
        )
        task = asyncio.create_task(log.run())
        log.resume(MEMBER)

        def put(offset: int) -> None:
            tracker.deliver(offset, 1)
            log.put(Outcome(PLACE, offset, Outgoing("r", b"", b"")))

        put(0)
        await _settle()
        assert writer.commits == [1], "the first one waits for nothing"
        put(1)
        put(2)
        await _settle()
        assert writer.commits == [1], "an hour is not over"
        assert log.waiting == 2
        assert await log.flush(5)
        put(3)
        await _settle()
        assert log.waiting == 1, "the hurry is over"
        await log.suspend()
        task.cancel()
        return writer.commits

    assert asyncio.run(run()) == [1, 2]
