"""The table of the feedback join: states by request id, dropped once nothing touched them for long.

It is in memory, and rebuilt from its changelog topic when a worker starts or partitions move.
Faust's own windows are of keys that bear a time; here a key's time moves with each write.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable
from typing import Any

import faust
from faust.stores.memory import Store

SEGMENTS = 24
"""Into so many segments a window of the changelog is cut: the broker deletes whole ones."""
SHORTEST_SEGMENT_S = 60.0


class Window:
    """When each key was last written, and in which partition. Times are in seconds."""

    def __init__(self) -> None:
        self._keys: OrderedDict[bytes, tuple[float, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._keys)

    def touch(self, key: bytes, at: float, partition: int) -> None:
        """``key`` was written. Keys are expected in order of time; ``sort`` mends that."""
        self._keys[key] = (at, partition)
        self._keys.move_to_end(key)

    def forget(self, key: bytes) -> None:
        """As if it had never been written."""
        self._keys.pop(key, None)

    def sort(self) -> None:
        """After writes out of order, as those of several partitions are that are read in turn."""
        self._keys = OrderedDict(sorted(self._keys.items(), key=lambda item: item[1][0]))

    def outside(self, partitions: Collection[int]) -> list[bytes]:
        """Keys of other partitions than these."""
        return [key for key, (_, partition) in self._keys.items() if partition not in partitions]

    def expired(self, before: float, most: int) -> list[bytes]:
        """Takes out up to ``most`` keys, the oldest first, that were last written earlier."""
        found: list[bytes] = []
        while self._keys and len(found) < most:
            key = next(iter(self._keys))
            if self._keys[key][0] >= before:
                break
            del self._keys[key]
            found.append(key)
        return found


class WindowStore(Store):  # type: ignore[misc]
    """Faust's memory, that knows of each key when and where it was written.

    Faust's own leaves behind what this worker wrote to partitions that it has lost.
    """

    table: JoinTable

    def __post_init__(self) -> None:
        self.data: dict[bytes, bytes] = {}
        self.window = Window()

    def apply_changelog_batch(
        self,
        batch: Iterable[Any],
        to_key: Callable[[Any], Any],
        to_value: Callable[[Any], Any],
    ) -> None:
        """Faust's hook: a part of the changelog was read."""
        oldest = self.table.clock() - self.table.window_s
        for event in batch:
            key = event.key
            if event.message.timestamp < oldest:
                continue
            known = self.data.get(key)
            self.data[key] = event.value if known is None else self.table.merge(known, event.value)
            self.window.touch(key, event.message.timestamp, event.message.partition)

    async def on_recovery_completed(self, active_tps: set[Any], standby_tps: set[Any]) -> None:
        """Faust's hook: this worker has these partitions now, and all that is known of them."""
        for key in self.window.outside({tp.partition for tp in active_tps | standby_tps}):
            self.data.pop(key, None)
            self.window.forget(key)
        self.window.sort()

    def sweep(self, before: float, most: int) -> list[bytes]:
        """Takes out up to ``most`` values that were last written before this time."""
        return [self.data.pop(key) for key in self.window.expired(before, most)]


class JoinTable(faust.Table):  # type: ignore[misc]
    """``Table`` of an application. Its changelog keeps no more than it does itself.

    ``merge`` makes one value of two that were written for a key, the earlier first: of all that the
    changelog has, as the last need not be the whole (a worker that was cut off may write late).
    """

    def __init__(
        self,
        *args: Any,
        window_s: float,
        merge: Callable[[bytes, bytes], bytes],
        clock: Callable[[], float] = time.time,
        **rest: Any,
    ) -> None:
        self.window_s = window_s
        self.merge = merge
        self.clock = clock
        super().__init__(*args, extra_topic_configs=changelog_config(window_s), **rest)

    def _new_store(self) -> WindowStore:
        return WindowStore("memory://", self.app, self, loop=self.loop)

    def write(self, key: bytes, value: bytes) -> asyncio.Future[Any]:
        """As setting an item; what is returned ends when the changelog has it.

        Faust commits the offset of what is being processed without waiting for that.
        """
        self[key] = value
        written: asyncio.Future[Any] = self._written
        return written

    def send_changelog(self, *args: Any, **named: Any) -> Any:
        """Faust's hook."""
        self._written = super().send_changelog(*args, **named)
        return self._written

    def on_key_set(self, key: bytes, value: bytes) -> None:
        """Faust's hook: a change goes to the changelog."""
        super().on_key_set(key, value)
        self.data.window.touch(key, self.clock(), self._written.message.partition)

    def sweep(self, most: int) -> list[bytes]:
        """Takes out up to ``most`` values that nothing has touched for the window, for good."""
        store: WindowStore = self.data
        return store.sweep(self.clock() - self.window_s, most)

    def info(self) -> dict[str, Any]:
        """Faust's hook: what a clone is made of."""
        found = dict(super().info(), window_s=self.window_s, merge=self.merge, clock=self.clock)
        del found["extra_topic_configs"]
        return found


def changelog_config(window_s: float) -> dict[str, str]:
    """Settings of a changelog that need not be older than a window, and is not compacted."""
    return {
        "cleanup.policy": "delete",
        "retention.ms": str(int(window_s * 1000)),
        "segment.ms": str(int(max(SHORTEST_SEGMENT_S, window_s / SEGMENTS) * 1000)),
    }
