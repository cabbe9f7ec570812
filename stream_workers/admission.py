"""How much work a worker takes on, counted in tokens (prompt + max_tokens).

Back-pressure: the agent awaits :meth:`Admission.acquire` before it takes its next event. Its
bounded stream buffer then fills, which makes Faust pause those partitions until the buffer drops;
so at most ``stream_buffer_maxsize`` records wait outside the budget.
"""

from __future__ import annotations

import asyncio
from collections import deque


class TokenBudget:
    """Pure. A request larger than the whole budget is admitted when nothing else runs."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.used = 0

    def admit(self, cost: int) -> bool:
        """Take ``cost`` tokens if they fit."""
        if self.used and self.used + cost > self._limit:
            return False
        self.used += cost
        return True

    def release(self, cost: int) -> None:
        """Give back what was admitted."""
        if cost > self.used:
            raise ValueError(f"{cost} tokens given back, {self.used} in use")
        self.used -= cost


class Admission:
    """First come, first served over a :class:`TokenBudget`. For one event loop."""

    def __init__(self, limit: int) -> None:
        self.budget = TokenBudget(limit)
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def acquire(self, cost: int) -> None:
        """Wait until ``cost`` tokens are free, behind those who came first."""
        if not self._waiting and self.budget.admit(cost):
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((cost, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.release(cost)
            raise

    def release(self, cost: int) -> None:
        """Give back, and let in whoever now fits."""
        self.budget.release(cost)
        while self._waiting:
            wanted, turn = self._waiting[0]
            if not turn.cancelled():
                if not self.budget.admit(wanted):
                    return
                turn.set_result(None)
            self._waiting.popleft()
