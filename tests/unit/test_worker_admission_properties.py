"""The scheduler's order, ticket by ticket, beside self-clocked fair queueing as it is published."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.contracts.config_sections import TenantConfig
from stream_workers.admission import (
    USAGE_DECAY,
    Limits,
    Priority,
    Scheduler,
    Ticket,
    TokenBudget,
    _Usage,
)

WEIGHTS = {"a": 1.0, "b": 2.0, "c": 0.5, "d": 4.0}


@dataclass(frozen=True)
class FakeLoad:
    running: int = 0
    waiting: int = 0
    kv_cache_usage: float = 0.0


@dataclass
class Share:
    """Used over reserved tokens, the older the less."""

    used: float = 0.0
    reserved: float = 0.0

    def add(self, used: int, reserved: int) -> None:
        self.used = self.used * USAGE_DECAY + used
        self.reserved = self.reserved * USAGE_DECAY + reserved

    def ratio(self, otherwise: float) -> float:
        return min(1.0, self.used / self.reserved) if self.reserved else otherwise


@dataclass
class Flow:
    tickets: list[Ticket[int]] = field(default_factory=list)
    start: float = 0.0
    finish: float = 0.0
    entered: int = 0
    usage: Share = field(default_factory=Share)


class Model:
    """One ticket at a time is in the engine. Golestani 1994, with the lengths that are expected."""

    def __init__(self) -> None:
        self.clock = 0.0
        self.flows: dict[str, Flow] = {}
        self.everybody = Share()
        self.serial = 0

    def offer(self, tenant: str, ticket: Ticket[int]) -> None:
        flow = self.flows.get(tenant)
        if flow is None:
            flow = self.flows[tenant] = Flow(start=self.clock)
        flow.tickets.append(ticket)
        if len(flow.tickets) == 1:
            self.enter(tenant, flow)

    def enter(self, tenant: str, flow: Flow) -> None:
        share = flow.usage.ratio(self.everybody.ratio(1.0))
        span = max(1.0, flow.tickets[0].cost * share) / WEIGHTS[tenant]
        # Who was held back, or cancelled its first, may go now at the earliest.
        flow.start = max(flow.start, self.clock - span)
        flow.finish = flow.start + span
        self.serial += 1
        flow.entered = self.serial

    def serve(self, used_of: float | None) -> Ticket[int] | None:
        if not self.flows:
            return None
        tenant = min(
            self.flows, key=lambda name: (self.flows[name].finish, self.flows[name].entered)
        )
        flow = self.flows[tenant]
        ticket = flow.tickets.pop(0)
        self.clock = flow.start = flow.finish
        if flow.tickets:
            self.enter(tenant, flow)
        if used_of is not None:
            used = int(ticket.cost * used_of)
            flow.usage.add(used, ticket.cost)
            self.everybody.add(used, ticket.cost)
        if not flow.tickets:
            del self.flows[tenant]
        return ticket

    def cancel(self, tenant: str, place: int) -> Ticket[int] | None:
        flow = self.flows.get(tenant)
        if flow is None:
            return None
        place %= len(flow.tickets)
        gone = flow.tickets.pop(place)
        if not flow.tickets:
            del self.flows[tenant]
        elif place == 0:
            self.enter(tenant, flow)
        return gone


OFFER = st.tuples(st.just("offer"), st.sampled_from(sorted(WEIGHTS)), st.integers(2, 40))
SERVE = st.tuples(
    st.just("serve"), st.sampled_from([None, 0.0, 0.25, 0.5, 1.0, 1.5]), st.integers(0, 0)
)
CANCEL = st.tuples(st.just("cancel"), st.sampled_from(sorted(WEIGHTS)), st.integers(0, 3))


@given(
    steps=st.lists(OFFER | OFFER | SERVE | CANCEL, max_size=80),
    priority=st.sampled_from(["interactive", "batch"]),
)
def test_the_order_is_that_of_self_clocked_fair_queueing(
    steps: list[tuple[str, Any, int]], priority: Priority
) -> None:
    limits = Limits(
        max_inflight_tokens=1, tenant=lambda name: TenantConfig(weight=WEIGHTS[name or ""])
    )
    scheduler: Scheduler[int] = Scheduler(limits)
    model, offered = Model(), 0
    # In the end all that was offered is served.
    for kind, what, number in [*steps, *[("serve", 1.0, 0)] * len(steps)]:
        if kind == "offer":
            ticket = Ticket(cost=number, payload=offered, tenant=what, priority=priority)
            offered += 1
            scheduler.offer(ticket)
            model.offer(what, ticket)
        elif kind == "cancel":
            gone = model.cancel(what, number)
            if gone is not None:
                assert scheduler.cancel(gone)
        else:
            expected = model.serve(what)
            started = scheduler.admit(FakeLoad(running=1), batch_tokens=1)
            assert started == ([] if expected is None else [expected])
            for one in started:
                scheduler.release(one, None if what is None else int(one.cost * what))
        assert scheduler.queued == sum(len(flow.tickets) for flow in model.flows.values())


@given(st.lists(st.tuples(st.integers(0, 60), st.booleans()), max_size=40), st.integers(1, 100))
def test_a_budget_is_a_sum_with_a_limit(moves: list[tuple[int, bool]], limit: int) -> None:
    budget, held = TokenBudget(limit), list[int]()
    for cost, takes in moves:
        if takes:
            fits = not sum(held) or sum(held) + cost <= limit
            assert budget.fits(cost) == fits
            assert budget.admit(cost) == fits
            if fits:
                held.append(cost)
        elif cost <= sum(held):
            budget.release(cost)
            held = [sum(held) - cost]
        else:
            with pytest.raises(
                ValueError, match=rf"^{cost} tokens given back, {sum(held)} in use$"
            ):
                budget.release(cost)
        assert budget.used == sum(held)


def test_a_newcomer_does_not_wait_longer_than_its_own_ticket() -> None:
    """It begins at the clock: of two alike, the one that was there does not go twice."""
    scheduler: Scheduler[int] = Scheduler(Limits(max_inflight_tokens=1))
    for number in range(4):
        scheduler.offer(Ticket(cost=10, payload=number, tenant="there"))
    (first,) = scheduler.admit(FakeLoad())
    for number in (10, 11):
        scheduler.offer(Ticket(cost=10, payload=number, tenant="new"))
    order = []
    while True:
        scheduler.release(first, 10)
        started = scheduler.admit(FakeLoad())
        if not started:
            break
        (first,) = started
        order.append(first.payload)
    assert order == [1, 10, 2, 11, 3]


def test_the_defaults_are_what_an_engine_with_nothing_set_gets() -> None:
    limits = Limits(max_inflight_tokens=1_000)
    assert (limits.max_waiting, limits.batch_waiting) == (32, 2)
    assert limits.tenant("any") == TenantConfig()
    scheduler: Scheduler[int] = Scheduler(limits)
    for number in range(40):
        scheduler.offer(Ticket(cost=1, payload=number))
    assert len(scheduler.admit(FakeLoad())) == 32
    assert scheduler.tenant_inflight("nobody") == (0, 0)
    assert scheduler.tenant_inflight(None) == (32, 32)


def test_a_mistake_is_named() -> None:
    scheduler: Scheduler[int] = Scheduler(Limits(max_inflight_tokens=10))
    ticket: Ticket[int] = Ticket(cost=3, payload=0)
    with pytest.raises(ValueError, match=r"^this ticket is not in flight$"):
        scheduler.release(ticket, 1)
    scheduler.offer(ticket)
    with pytest.raises(ValueError, match=r"^this ticket was offered before$"):
        scheduler.offer(ticket)
    scheduler.admit(FakeLoad())
    with pytest.raises(ValueError, match=r"^this ticket was offered before$"):
        scheduler.offer(ticket)
    with pytest.raises(ValueError, match=r"^a ticket that costs -1 tokens$"):
        scheduler.offer(Ticket(cost=-1, payload=1))
    # One that costs nothing is none.
    scheduler.offer(Ticket(cost=0, payload=2))


def test_new_limits_of_a_tenant_hold_at_once_both_ways() -> None:
    most: dict[str, int | None] = {"a": 1}

    def limits() -> Limits:
        return Limits(
            max_inflight_tokens=100,
            tenant=lambda name: TenantConfig(max_inflight_requests=most[name or ""]),
        )

    scheduler: Scheduler[int] = Scheduler(limits())
    for number in range(4):
        scheduler.offer(Ticket(cost=1, payload=number, tenant="a"))
    assert [one.payload for one in scheduler.admit(FakeLoad())] == [0]
    assert (scheduler.queued_interactive, scheduler.ready_interactive) == (3, 0)
    most["a"] = 3
    scheduler.reconfigure(limits())
    assert scheduler.ready_interactive == 3
    assert [one.payload for one in scheduler.admit(FakeLoad(running=1))] == [1, 2]
    assert scheduler.ready_interactive == 0
    most["a"] = None
    scheduler.reconfigure(limits())
    assert [one.payload for one in scheduler.admit(FakeLoad(running=3))] == [3]


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 40)), max_size=6))
def test_what_is_used_of_what_is_reserved_counts_less_the_older_it_is(
    ended: list[tuple[int, int]],
) -> None:
    usage = _Usage()
    assert usage.ratio(0.75) == 0.75
    for used, reserved in ended:
        usage.add(used, reserved)
    ages = range(len(ended) - 1, -1, -1)
    spent = math.fsum(each * USAGE_DECAY**age for (each, _), age in zip(ended, ages, strict=True))
    held = math.fsum(each * USAGE_DECAY**age for (_, each), age in zip(ended, ages, strict=True))
    expected = min(1.0, spent / held) if held else 0.75
    assert usage.ratio(0.75) == pytest.approx(expected)


def test_who_uses_half_of_what_it_reserves_goes_twice_as_often() -> None:
    scheduler: Scheduler[int] = Scheduler(Limits(max_inflight_tokens=1))
    for number in range(60):
        for tenant in ("half", "all"):
            scheduler.offer(Ticket(cost=16, payload=number, tenant=tenant))
    order: list[str | None] = []
    for _ in range(60):
        (started,) = scheduler.admit(FakeLoad())
        order.append(started.tenant)
        scheduler.release(started, 8 if started.tenant == "half" else 16)
    assert order.count("half") in (39, 40, 41)


def test_whoever_was_held_back_by_its_own_limit_is_next_when_it_is_not() -> None:
    held = TenantConfig(max_inflight_requests=1)
    limits = Limits(
        max_inflight_tokens=20, tenant=lambda name: held if name == "held" else TenantConfig()
    )
    scheduler: Scheduler[int] = Scheduler(limits)
    for number in range(6):
        scheduler.offer(Ticket(cost=10, payload=number, tenant="held"))
        scheduler.offer(Ticket(cost=10, payload=number, tenant="free"))
    long, short = scheduler.admit(FakeLoad(running=2))
    assert (long.tenant, short.tenant) == ("held", "free")
    for _ in range(3):
        scheduler.release(short, 10)
        (short,) = scheduler.admit(FakeLoad(running=2))
        assert short.tenant == "free"
    # It has saved one turn up, and no more.
    for expected in ("held", "free"):
        scheduler.release(long, 10)
        (long,) = scheduler.admit(FakeLoad(running=2))
        assert long.tenant == expected


def served(scheduler: Scheduler[int]) -> list[str | None]:
    """Tenants in the order in which their tickets start, one at a time, each using all it has."""
    order: list[str | None] = []
    while started := scheduler.admit(FakeLoad(), batch_tokens=1):
        order.append(started[0].tenant)
        scheduler.release(started[0], started[0].cost)
    return order


def test_a_first_ticket_is_taken_for_what_it_reserves_and_the_least_for_one_token() -> None:
    scheduler: Scheduler[int] = Scheduler(Limits(max_inflight_tokens=1))
    scheduler.offer(Ticket(cost=10, payload=0, tenant="a"))
    scheduler.offer(Ticket(cost=16, payload=0, tenant="b"))
    (first,) = scheduler.admit(FakeLoad())
    scheduler.release(first, first.cost)
    scheduler.offer(Ticket(cost=10, payload=1, tenant="a"))
    # At 10 of virtual time ``a`` asks for 10 more, and ``b`` waits for 16 since 0.
    assert (first.tenant, served(scheduler)) == ("a", ["b", "a"])
    small: Scheduler[int] = Scheduler(Limits(max_inflight_tokens=1))
    for _ in range(3):
        small.offer(Ticket(cost=1, payload=0, tenant="a"))
    small.offer(Ticket(cost=3, payload=0, tenant="b"))
    assert served(small) == ["a", "a", "b", "a"]


def test_batch_starts_in_an_idle_engine_however_few_may_wait_and_its_tokens_add_up() -> None:
    limits = Limits(max_inflight_tokens=1_000, batch_waiting=1)
    scheduler: Scheduler[int] = Scheduler(limits)
    tickets: list[Ticket[int]] = [
        Ticket(cost=cost, payload=0, priority="batch") for cost in (10, 20)
    ]
    for one in tickets:
        scheduler.offer(one)
    assert scheduler.admit(FakeLoad(), batch_tokens=100) == tickets[:1]
    assert scheduler.admit(FakeLoad(), batch_tokens=100) == []
    assert scheduler.admit(FakeLoad(running=1), batch_tokens=100) == tickets[1:]
    assert scheduler.inflight_batch_tokens == 30
    scheduler.release(tickets[0], None)
    assert scheduler.inflight_batch_tokens == 20
