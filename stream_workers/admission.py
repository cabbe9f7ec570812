"""Which of the requests taken from Kafka may start. Pure; no clock, no I/O, for one event loop.

Three rules, in this order. The engine is not flooded: in-flight tokens (prompt + max_tokens, the
KV cache a request may come to need) and the engine's own queue are bounded. Interactive requests
go before batch ones. Within such a class tenants share by weight, in tokens.

Sharing is self-clocked fair queueing (Golestani, INFOCOM 1994): each tenant's first ticket has a
virtual finish time, its tokens / weight after the one before it, and the least finish time starts
next. The clock is the finish time of the last that started, so who was idle begins now and has
saved nothing up, and no ticket can be overtaken for ever.
"""

from __future__ import annotations

import heapq
import itertools
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Literal, NamedTuple, Protocol, TypeVar

from infra.contracts.config_sections import TenantConfig

T = TypeVar("T")
Priority = Literal["interactive", "batch"]
USAGE_DECAY = 0.98


class TokenBudget:
    """Pure. A request larger than the whole budget is admitted when nothing else runs."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0

    def fits(self, cost: int) -> bool:
        """Whether ``cost`` tokens would be admitted now."""
        return not self.used or self.used + cost <= self.limit

    def admit(self, cost: int) -> bool:
        """Take ``cost`` tokens if they fit."""
        if not self.fits(cost):
            return False
        self.used += cost
        return True

    def release(self, cost: int) -> None:
        """Give back what was admitted."""
        if cost > self.used:
            raise ValueError(f"{cost} tokens given back, {self.used} in use")
        self.used -= cost


@dataclass(frozen=True, eq=False, kw_only=True)
class Ticket(Generic[T]):
    """A request taken and not started. ``cost``: prompt + max_tokens. Compared by identity."""

    cost: int
    payload: T
    tenant: str | None = None
    priority: Priority = "interactive"


class Load(Protocol):
    """How busy the engine is, as of its last step. ``kv_cache_usage`` is a fraction, 0 to 1."""

    @property
    def running(self) -> int: ...

    @property
    def waiting(self) -> int: ...

    @property
    def kv_cache_usage(self) -> float: ...


@dataclass(frozen=True, kw_only=True)
class Limits:
    """``max_waiting``: requests in the engine that do not run yet. ``tenant``: its settings now.

    ``batch_waiting``: as ``max_waiting``, for a batch request to start. A step takes in all that
    wait, and an interactive request that comes meanwhile waits for all their prompts.
    """

    max_inflight_tokens: int
    max_waiting: int = 32
    batch_waiting: int = 2
    tenant: Callable[[str | None], TenantConfig] = lambda name: TenantConfig()


class InFlight(NamedTuple):
    """What a tenant has in the engine."""

    requests: int
    tokens: int


class _Usage:
    """Used over reserved tokens, of the last 50 requests or so (exponential forgetting)."""

    def __init__(self) -> None:
        self._used = self._reserved = 0.0

    def add(self, used: int, reserved: int) -> None:
        self._used = USAGE_DECAY * self._used + used
        self._reserved = USAGE_DECAY * self._reserved + reserved

    def ratio(self, otherwise: float) -> float:
        return min(1.0, self._used / self._reserved) if self._reserved else otherwise


class _Flow(Generic[T]):
    """One tenant's queue in one class. ``entry`` is its place in the lane's heap; 0: none."""

    def __init__(self, lane: _Lane[T]) -> None:
        self.lane = lane
        self.tickets: OrderedDict[Ticket[T], None] = OrderedDict()
        self.start = lane.clock
        self.finish = 0.0
        self.entry = 0

    @property
    def head(self) -> Ticket[T]:
        return next(iter(self.tickets))


class _Tenant(Generic[T]):
    """Exists while it has anything queued or in flight."""

    def __init__(self, name: str | None) -> None:
        self.name = name
        self.requests = self.tokens = 0
        self.flows: dict[Priority, _Flow[T]] = {}
        self.usage = _Usage()


class _Lane(Generic[T]):
    """One class: the flows whose first ticket may compete, by virtual finish time."""

    def __init__(self) -> None:
        self.clock = 0.0
        self.queued = 0  # tickets
        self.ready = 0  # ... in flows that compete
        self._competing = 0  # flows
        self._serial = itertools.count(1)
        self._heap: list[tuple[float, int, _Flow[T]]] = []

    def enter(self, flow: _Flow[T], span: float) -> None:
        """Compete with a first ticket worth ``span``. Who was held back may go now, no earlier."""
        flow.start = max(flow.start, self.clock - span)
        flow.finish = flow.start + span
        flow.entry = next(self._serial)
        self.ready += len(flow.tickets)
        self._competing += 1
        if len(self._heap) > 2 * self._competing + 16:
            self._heap = [place for place in self._heap if place[1] == place[2].entry]
            heapq.heapify(self._heap)
        heapq.heappush(self._heap, (flow.finish, flow.entry, flow))

    def leave(self, flow: _Flow[T]) -> None:
        """Compete no more; what lies in the heap is passed over later."""
        if flow.entry:
            flow.entry = 0
            self.ready -= len(flow.tickets)
            self._competing -= 1

    def first(self) -> _Flow[T] | None:
        """The flow to be served next."""
        while self._heap and self._heap[0][1] != self._heap[0][2].entry:
            heapq.heappop(self._heap)
        return self._heap[0][2] if self._heap else None

    def append(self, flow: _Flow[T], ticket: Ticket[T]) -> None:
        flow.tickets[ticket] = None
        self.queued += 1
        self.ready += 1 if flow.entry else 0

    def remove(self, flow: _Flow[T], ticket: Ticket[T]) -> None:
        """Take one ticket out; the flow leaves if it was its first."""
        if flow.head is ticket:
            self.leave(flow)
        self.ready -= 1 if flow.entry else 0
        del flow.tickets[ticket]
        self.queued -= 1


class Scheduler(Generic[T]):
    """Tickets in, tickets that may start out: each exactly once, unless it is cancelled before.

    FIFO within a tenant and class. Between tenants that both have tickets all the time, of one
    class and under no limit of their own, tokens / weight differ by at most one largest ticket /
    weight of each. Tokens are those expected to be used: the cost, scaled by what the tenant's
    last requests used of theirs (new tenants: by everybody's).

    A ticket that does not fit holds back all behind it, so that large ones do not starve; one
    larger than a limit runs alone. A tenant at its own limit holds back nobody else.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._budget = TokenBudget(limits.max_inflight_tokens)
        self._lanes: dict[Priority, _Lane[T]] = {"interactive": _Lane(), "batch": _Lane()}
        self._tenants: dict[str | None, _Tenant[T]] = {}
        self._queued: dict[Ticket[T], _Flow[T]] = {}
        self._running: set[Ticket[T]] = set()
        self._batch_tokens = 0
        self._usage = _Usage()

    @property
    def queued(self) -> int:
        """Tickets that wait, of both classes."""
        return len(self._queued)

    @property
    def queued_interactive(self) -> int:
        """Interactive tickets that wait, for whatever reason."""
        return self._lanes["interactive"].queued

    @property
    def ready_interactive(self) -> int:
        """... without those of tenants that are at a limit of their own."""
        return self._lanes["interactive"].ready

    @property
    def inflight(self) -> int:
        """Tickets admitted and not released."""
        return len(self._running)

    @property
    def inflight_tokens(self) -> int:
        """Their cost."""
        return self._budget.used

    @property
    def inflight_batch_tokens(self) -> int:
        """The part of it that is batch."""
        return self._batch_tokens

    def tenant_inflight(self, name: str | None) -> InFlight:
        """What one tenant has in flight, of both classes."""
        tenant = self._tenants.get(name)
        return InFlight(tenant.requests, tenant.tokens) if tenant else InFlight(0, 0)

    def reconfigure(self, limits: Limits) -> None:
        """New limits, from the next admission on. Call it also when ``tenant`` answers anew."""
        self._limits = limits
        self._budget.limit = limits.max_inflight_tokens
        for tenant in list(self._tenants.values()):
            self._settle(tenant)

    def offer(self, ticket: Ticket[T]) -> None:
        """Queue a ticket. O(log tenants). Raises ValueError if it is here already."""
        if ticket in self._queued or ticket in self._running:
            raise ValueError("this ticket was offered before")
        if ticket.cost < 0:
            raise ValueError(f"a ticket that costs {ticket.cost} tokens")
        tenant = self._tenants.get(ticket.tenant)
        if tenant is None:
            tenant = self._tenants[ticket.tenant] = _Tenant(ticket.tenant)
        flow = tenant.flows.get(ticket.priority)
        if flow is None:
            flow = tenant.flows[ticket.priority] = _Flow(self._lanes[ticket.priority])
        self._queued[ticket] = flow
        flow.lane.append(flow, ticket)
        self._settle(tenant)

    def admit(self, load: Load, *, batch_tokens: int = 0) -> list[Ticket[T]]:
        """The tickets that start now, in this order; release each of them later.

        ``batch_tokens`` bounds what batch has in flight (``slack.BatchWindow.limit_tokens``).
        Call it after every offer and release, and when the engine's load changes: an engine that
        reports no ``running`` gets ``max_waiting`` requests at most. If nothing is in flight, one
        ticket is admitted whatever the load says, as it may be stale.
        """
        admitted = []
        while (flow := self._next(load, batch_tokens)) is not None:
            admitted.append(self._start(flow))
        return admitted

    def release(self, ticket: Ticket[T], tokens_used: int | None) -> None:
        """Give back a ticket that ended, having used ``tokens_used`` of its cost.

        The prompt counts as used; ``None`` for a request that was broken off, from which nothing
        is learnt. Raises ValueError unless the ticket is in flight.
        """
        if ticket not in self._running:
            raise ValueError("this ticket is not in flight")
        self._running.remove(ticket)
        self._budget.release(ticket.cost)
        if ticket.priority == "batch":
            self._batch_tokens -= ticket.cost
        tenant = self._tenants[ticket.tenant]
        tenant.requests -= 1
        tenant.tokens -= ticket.cost
        if tokens_used is not None:
            tenant.usage.add(tokens_used, ticket.cost)
            self._usage.add(tokens_used, ticket.cost)
        self._settle(tenant)

    def cancel(self, ticket: Ticket[T]) -> bool:
        """Take a queued ticket out; ``False`` if it is not queued (any more). O(log tenants)."""
        flow = self._queued.pop(ticket, None)
        if flow is None:
            return False
        flow.lane.remove(flow, ticket)
        self._settle(self._tenants[ticket.tenant])
        return True

    def _next(self, load: Load, batch_tokens: int) -> _Flow[T] | None:
        waiting = 0
        if self._running:
            # What was admitted since the engine's last step waits too.
            waiting = max(load.waiting, len(self._running) - load.running)
            if waiting >= self._limits.max_waiting:
                return None
        flow = self._lanes["interactive"].first()
        if flow is None:
            flow = self._lanes["batch"].first()
            if flow is None or batch_tokens <= 0 or waiting >= self._limits.batch_waiting:
                return None
            after = self._batch_tokens + flow.head.cost
            if self._batch_tokens and after > batch_tokens:
                return None
        return flow if self._budget.fits(flow.head.cost) else None

    def _start(self, flow: _Flow[T]) -> Ticket[T]:
        ticket, lane = flow.head, flow.lane
        lane.remove(flow, ticket)
        # Never back: who enters finishes at the clock or later, and the least finish is served.
        lane.clock = flow.start = flow.finish
        del self._queued[ticket]
        self._running.add(ticket)
        self._budget.admit(ticket.cost)
        if ticket.priority == "batch":
            self._batch_tokens += ticket.cost
        tenant = self._tenants[ticket.tenant]
        tenant.requests += 1
        tenant.tokens += ticket.cost
        self._settle(tenant)
        return ticket

    def _settle(self, tenant: _Tenant[T]) -> None:
        """Let the tenant's flows compete or not, and forget what is empty."""
        limits = self._limits.tenant(tenant.name)
        for priority, flow in list(tenant.flows.items()):
            if not flow.tickets:
                # It begins at the clock when it comes back: the clock has passed its last finish.
                del tenant.flows[priority]
            elif not _within(limits, tenant, flow.head.cost):
                flow.lane.leave(flow)
            elif not flow.entry:
                expected = flow.head.cost * tenant.usage.ratio(self._usage.ratio(1.0))
                flow.lane.enter(flow, max(1.0, expected) / limits.weight)
        if not tenant.flows and not tenant.requests:
            del self._tenants[tenant.name]


def _within(limits: TenantConfig, tenant: _Tenant[T], cost: int) -> bool:
    if not tenant.requests:
        return True
    requests, tokens = limits.max_inflight_requests, limits.max_inflight_tokens
    return (requests is None or tenant.requests < requests) and (
        tokens is None or tenant.tokens + cost <= tokens
    )
