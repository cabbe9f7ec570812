"""Acknowledgements of one partition, strictly in the order of delivery. Pure.

Faust 0.15.3 computes a wrong commit offset when acks arrive out of order (faust-streaming 606).
What was delivered is ordered here, not offset arithmetic, so that gaps from transaction markers
or compaction stall nothing.
"""

from __future__ import annotations

from collections import deque


class OffsetTracker:
    """Holds back an ack until everything delivered before it is finished."""

    def __init__(self) -> None:
        self._order: deque[int] = deque()
        self._unfinished: set[int] = set()

    @property
    def pending(self) -> int:
        """How many delivered offsets were not yet handed out for acknowledgement."""
        return len(self._order)

    def deliver(self, offset: int) -> None:
        """Take note of a delivered offset. Raises ValueError unless it exceeds the last one."""
        if self._order and offset <= self._order[-1]:
            raise ValueError(f"offset {offset} delivered after {self._order[-1]}")
        self._order.append(offset)
        self._unfinished.add(offset)

    def finish(self, offset: int) -> list[int]:
        """Mark as finished; returns the offsets that may be acked now, ascending.

        An offset that is unknown, or finished before, gives an empty list.
        """
        if offset not in self._unfinished:
            return []
        self._unfinished.remove(offset)
        ready: list[int] = []
        while self._order and self._order[0] not in self._unfinished:
            ready.append(self._order.popleft())
        return ready
