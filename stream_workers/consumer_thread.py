"""Faust's consumer thread, extended: it reads what is committed, and fetches nothing while held."""

from __future__ import annotations

import asyncio
from collections.abc import Set as AbstractSet
from typing import Any

from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread
from mode.threads import WorkerThread

FETCH_WAIT_MS = 500
"""How long the broker may hold back an empty fetch, Kafka's default.

aiokafka has one fetch under way for a broker: a partition that is resumed waits for it to return.
"""
HELD_S = 0.02
"""Until who asks for records while none are fetched may ask again."""


class _DaemonThread(WorkerThread):  # type: ignore[misc]
    """Ends with the process: without a broker, aiokafka's consumer never stops."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.daemon = True


class Hold:
    """Nothing is fetched until it is released, which any thread may do at once.

    To have the thread do that would not be safe: what is asked of it while it is busy is never
    done where who asked is cancelled meanwhile, as Faust's seeks are when partitions move.
    """

    def __init__(self) -> None:
        self.released = False

    def release(self) -> None:
        """Also of one that has not come to the thread yet."""
        self.released = True


class ConsumerThread(AIOKafkaConsumerThread):  # type: ignore[misc]
    """Reads committed records, where Faust reads all, and nothing while it is held.

    The fields here are the thread's; others only read ``_turn``.
    """

    Worker = _DaemonThread

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._holds: list[Hold] = []
        self._turn = 0
        self._fetching = 0
        self._idle = asyncio.Event()

    async def hold(self, hold: Hold) -> None:
        """Fetch nothing until it is released, not what was asked for before either.

        Returns once no fetch is under way.
        """
        await self.call_thread(self._hold, hold)

    async def getmany(self, active_partitions: AbstractSet[Any] | None, timeout: float) -> Any:
        """As Faust's."""
        consumer = self._ensure_consumer()
        return await self.call_thread(
            self._fetch,
            self._turn,
            consumer,
            active_partitions,
            timeout=timeout,
            max_records=consumer._max_poll_records,
        )

    async def _hold(self, hold: Hold) -> None:
        self._holds.append(hold)
        self._turn += 1
        while self._fetching:
            self._idle.clear()
            await self._idle.wait()

    async def _fetch(self, turn: int, *arguments: Any, **options: Any) -> Any:
        self._holds = [hold for hold in self._holds if not hold.released]
        if self._holds or turn != self._turn:
            await asyncio.sleep(HELD_S)
            return {}
        self._fetching += 1
        try:
            return await self._fetch_records(*arguments, **options)
        finally:
            self._fetching -= 1
            self._idle.set()

    def _create_worker_consumer(self, transport: Any) -> Any:
        consumer = super()._create_worker_consumer(transport)
        # Used when the consumer starts; Faust passes fixed values on.
        consumer._isolation_level = "read_committed"
        consumer._fetch_max_wait_ms = FETCH_WAIT_MS
        return consumer

    async def _fetch_records(
        self, consumer: Any, active_partitions: AbstractSet[Any] | None, **options: Any
    ) -> Any:
        """Fetch nothing of a partition that is not active.

        Faust leaves such records (a table's changelog, once it is recovered) with aiokafka, which
        then fetches nothing from that broker for 100 ms, hoping that somebody takes them.
        """
        if active_partitions is not None and self.consumer.flow_active:
            wanted = frozenset(active_partitions)
            paused = consumer.paused()
            consumer.pause(*(consumer.assignment() - wanted - paused))
            # Faust's class of a partition is equal to aiokafka's, but not accepted by it.
            consumer.resume(*(partition for partition in paused if partition in wanted))
        return await super()._fetch_records(consumer, active_partitions, **options)
