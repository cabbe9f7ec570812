"""The scheduler: bounds, priority, fair shares, order, and that every ticket ends exactly once."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from infra.contracts.config_sections import TenantConfig
from stream_workers.admission import Limits, Priority, Scheduler, Ticket, TokenBudget


@dataclass(frozen=True)
class FakeLoad:
    running: int = 0
    waiting: int = 0
    kv_cache_usage: float = 0.0


def ticket(
    cost: int, tenant: str | None = None, priority: Priority = "interactive", name: int = 0
) -> Ticket[int]:
    return Ticket(cost=cost, payload=name, tenant=tenant, priority=priority)


def names(tickets: list[Ticket[int]]) -> list[int]:
    return [each.payload for each in tickets]


@given(costs=st.lists(st.integers(0, 200), max_size=30))
def test_budget_is_only_exceeded_by_a_request_alone(costs: list[int]) -> None:
    budget = TokenBudget(100)
    admitted = [cost for cost in costs if budget.admit(cost)]
    assert budget.used == sum(admitted)
    assert budget.used <= 100 or len([cost for cost in admitted if cost]) == 1
    for cost in admitted:
        budget.release(cost)
    assert budget.used == 0


TENANTS = (None, "a", "b", "c")
LIMITS = st.one_of(st.none(), st.integers(1, 4))
# Tens, so that what just fits is common.
COST = st.integers(0, 12).map(lambda tens: 10 * tens)
TOKENS = st.integers(1, 30).map(lambda tens: 10 * tens)


class SchedulerMachine(RuleBasedStateMachine):
    """Any mix of calls, beside a model that is only lists."""

    def __init__(self) -> None:
        super().__init__()
        self.queues: dict[tuple[str | None, Priority], list[Ticket[int]]] = {
            (name, priority): [] for name in TENANTS for priority in ("interactive", "batch")
        }
        self.flying: list[Ticket[int]] = []
        self.ended: list[Ticket[int]] = []
        self.offered = 0

    @initialize(
        tokens=TOKENS,
        waiting=st.integers(1, 6),
        tenants=st.lists(
            st.builds(
                TenantConfig,
                weight=st.sampled_from([0.1, 1.0, 3.0]),
                max_inflight_requests=LIMITS,
                max_inflight_tokens=st.one_of(st.none(), TOKENS),
            ),
            min_size=4,
            max_size=4,
        ),
    )
    def begin(self, tokens: int, waiting: int, tenants: list[TenantConfig]) -> None:
        self.limits = self._limits(tokens, waiting, tenants)
        self.scheduler: Scheduler[int] = Scheduler(self.limits)

    def _limits(self, tokens: int, waiting: int, tenants: list[TenantConfig]) -> Limits:
        by_name = dict(zip(TENANTS, tenants, strict=True))
        return Limits(
            max_inflight_tokens=tokens, max_waiting=waiting, tenant=lambda name: by_name[name]
        )

    @rule(
        cost=COST,
        tenant=st.sampled_from(TENANTS),
        priority=st.sampled_from(["interactive", "batch"]),
    )
    def offer(self, cost: int, tenant: str | None, priority: Priority) -> None:
        offered = ticket(cost, tenant, priority, self.offered)
        self.offered += 1
        self.scheduler.offer(offered)
        self.queues[tenant, priority].append(offered)

    @rule(waiting=st.integers(0, 6), unseen=st.integers(0, 4), batch_tokens=TOKENS | st.just(0))
    def admit(self, waiting: int, unseen: int, batch_tokens: int) -> None:
        load = FakeLoad(running=max(0, len(self.flying) - unseen), waiting=waiting)
        for started in self.scheduler.admit(load, batch_tokens=batch_tokens):
            self._check_start(started, load, batch_tokens)
            self.flying.append(started)
        # It stopped for a reason.
        classes: tuple[Priority, ...] = ("interactive", "batch")
        candidates = {priority: self._could_start(priority) for priority in classes}
        if candidates["interactive"] or (candidates["batch"] and batch_tokens):
            assert self.flying
            seen = max(waiting, len(self.flying) - load.running) >= (
                self.limits.max_waiting
                if candidates["interactive"]
                else min(self.limits.max_waiting, self.limits.batch_waiting)
            )
            heads = candidates["interactive"] or candidates["batch"]
            tight = any(not self._fits(head, batch_tokens) for head in heads)
            assert seen or tight

    def _fits(self, head: Ticket[int], batch_tokens: int) -> bool:
        used = self._tokens(self.flying)
        if used and used + head.cost > self.limits.max_inflight_tokens:
            return False
        batch = self._tokens([each for each in self.flying if each.priority == "batch"])
        return head.priority == "interactive" or not batch or batch + head.cost <= batch_tokens

    def _could_start(self, priority: Priority) -> list[Ticket[int]]:
        """First tickets of tenants that are at no limit of their own."""
        found = []
        for name in TENANTS:
            queue = self.queues[name, priority]
            if queue and self._tenant_allows(queue[0]):
                found.append(queue[0])
        return found

    def _tenant_allows(self, head: Ticket[int]) -> bool:
        limits = self.limits.tenant(head.tenant)
        own = [each for each in self.flying if each.tenant == head.tenant]
        requests, tokens = limits.max_inflight_requests, limits.max_inflight_tokens
        return not own or (
            (requests is None or len(own) < requests)
            and (tokens is None or self._tokens(own) + head.cost <= tokens)
        )

    def _check_start(self, started: Ticket[int], load: FakeLoad, batch_tokens: int) -> None:
        assert self.queues[started.tenant, started.priority].pop(0) is started
        assert self._tenant_allows(started)
        assert self._fits(started, batch_tokens)
        waiting = max(load.waiting, len(self.flying) - load.running)
        if self.flying:
            assert waiting < self.limits.max_waiting
        if started.priority == "batch":
            assert batch_tokens > 0
            assert not self.flying or waiting < self.limits.batch_waiting
            assert not self._could_start("interactive")

    @staticmethod
    def _tokens(tickets: list[Ticket[int]]) -> int:
        return sum(each.cost for each in tickets)

    @precondition(lambda self: self.flying)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        ended = self.flying.pop(data.draw(st.integers(0, len(self.flying) - 1)))
        self.scheduler.release(ended, data.draw(st.integers(0, ended.cost)))
        self.ended.append(ended)

    @precondition(lambda self: any(self.queues.values()))
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        queue = data.draw(st.sampled_from([queue for queue in self.queues.values() if queue]))
        gone = queue.pop(data.draw(st.integers(0, len(queue) - 1)))
        assert self.scheduler.cancel(gone)
        assert not self.scheduler.cancel(gone)
        self.ended.append(gone)

    @rule(tokens=TOKENS, requests=LIMITS)
    def reconfigure(self, tokens: int, requests: int | None) -> None:
        tenants = [TenantConfig(max_inflight_requests=requests)] * 4
        self.limits = self._limits(tokens, 4, tenants)
        self.scheduler.reconfigure(self.limits)

    @invariant()
    def counts_agree(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        scheduler = self.scheduler
        waiting = [each for queue in self.queues.values() for each in queue]
        assert scheduler.queued == len(waiting)
        interactive = [each for each in waiting if each.priority == "interactive"]
        assert scheduler.queued_interactive == len(interactive)
        able = [head.tenant for head in self._could_start("interactive")]
        assert scheduler.ready_interactive == len([t for t in interactive if t.tenant in able])
        assert scheduler.inflight == len(self.flying)
        assert scheduler.inflight_tokens == self._tokens(self.flying)
        batch = [each for each in self.flying if each.priority == "batch"]
        assert scheduler.inflight_batch_tokens == self._tokens(batch)
        for name in TENANTS:
            own = [each for each in self.flying if each.tenant == name]
            assert scheduler.tenant_inflight(name) == (len(own), self._tokens(own))

    def teardown(self) -> None:
        """Whatever the state, it drains, and each ticket ended exactly once."""
        if not hasattr(self, "scheduler"):
            return
        for _ in range(2 * self.offered + 2):
            for flying in self.flying:
                self.scheduler.release(flying, flying.cost)
                self.ended.append(flying)
            self.flying = self.scheduler.admit(FakeLoad(), batch_tokens=1)
        assert self.scheduler.queued == self.scheduler.inflight == 0
        assert sorted(names(self.ended)) == list(range(self.offered))


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)


ONE_AT_A_TIME = 1


def serve(scheduler: Scheduler[int], count: int) -> list[Ticket[int]]:
    """Start and end tickets one by one, each using all that it reserved."""
    served = []
    for _ in range(count):
        for started in scheduler.admit(FakeLoad(), batch_tokens=ONE_AT_A_TIME):
            scheduler.release(started, started.cost)
            served.append(started)
    return served


def weighted(weights: dict[str, float], tokens: int = ONE_AT_A_TIME) -> Limits:
    return Limits(
        max_inflight_tokens=tokens,
        tenant=lambda name: TenantConfig(weight=weights.get(name or "", 1.0)),
    )


@given(
    flows=st.lists(
        st.tuples(
            st.sampled_from([0.25, 1.0, 2.0, 5.0]), st.lists(st.integers(1, 500), min_size=40)
        ),
        min_size=2,
        max_size=4,
    ),
    priority=st.sampled_from(["interactive", "batch"]),
    late=st.integers(0, 20),
)
def test_backlogged_tenants_share_by_weight_within_a_largest_ticket_each(
    flows: list[tuple[float, list[int]]], priority: Priority, late: int
) -> None:
    """From the moment all are backlogged; the first may have had the engine alone before."""
    weights = {str(index): weight for index, (weight, _) in enumerate(flows)}
    scheduler: Scheduler[int] = Scheduler(weighted(weights))
    left = {name: len(costs) for name, (_, costs) in zip(weights, flows, strict=True)}
    largest = {name: max(costs) for name, (_, costs) in zip(weights, flows, strict=True)}
    for index, (name, (_, costs)) in enumerate(zip(weights, flows, strict=True)):
        if index == 1:
            left["0"] -= len(serve(scheduler, late))
        for cost in costs:
            scheduler.offer(ticket(cost, name, priority))
    done = dict.fromkeys(weights, 0.0)
    while all(left.values()):
        (served,) = serve(scheduler, 1)
        assert served.tenant is not None
        done[served.tenant] += served.cost / weights[served.tenant]
        left[served.tenant] -= 1
        for one, other in itertools.combinations(weights, 2):
            bound = largest[one] / weights[one] + largest[other] / weights[other]
            assert abs(done[one] - done[other]) <= bound * (1 + 1e-9)


def test_a_tenant_that_was_idle_has_saved_nothing_up() -> None:
    scheduler: Scheduler[int] = Scheduler(weighted({}))
    for _ in range(300):
        scheduler.offer(ticket(10, "busy"))
    serve(scheduler, 100)
    for _ in range(100):
        scheduler.offer(ticket(10, "fresh"))
    served = [each.tenant for each in serve(scheduler, 100)]
    assert served.count("fresh") == 50


def test_a_tenant_held_by_its_own_limit_saves_at_most_one_ticket_up() -> None:
    held = TenantConfig(max_inflight_requests=1)
    limits = Limits(
        max_inflight_tokens=20, tenant=lambda name: held if name == "held" else TenantConfig()
    )
    scheduler: Scheduler[int] = Scheduler(limits)
    for _ in range(100):
        scheduler.offer(ticket(10, "held"))
        scheduler.offer(ticket(10, "free"))
    (first, other) = scheduler.admit(FakeLoad(running=2))
    assert {first.tenant, other.tenant} == {"held", "free"}
    long, short = (first, other) if first.tenant == "held" else (other, first)
    for _ in range(50):
        scheduler.release(short, 10)
        (short,) = scheduler.admit(FakeLoad(running=2))
        assert short.tenant == "free"
    scheduler.reconfigure(weighted({}, tokens=20))
    order: list[str | None] = []
    for _ in range(20):
        scheduler.release(short, 10)
        (short,) = scheduler.admit(FakeLoad(running=2))
        order.append(short.tenant)
    assert order.count("held") in (10, 11)
    scheduler.release(long, 10)


def test_endless_newcomers_do_not_starve_a_tenant_with_large_requests() -> None:
    """Each newcomer may go before the large ones, but together they cannot for ever."""
    scheduler: Scheduler[int] = Scheduler(weighted({}))
    for name in range(2):
        scheduler.offer(ticket(1000, "large", name=name))
    served: list[str | None] = []
    for number in range(3_000):
        while scheduler.queued < 12:
            scheduler.offer(ticket(10, f"newcomer {number} {scheduler.queued}"))
        served += [each.tenant for each in serve(scheduler, 1)]
    assert served.count("large") == 2


def test_tokens_that_were_reserved_and_not_used_do_not_count_against_a_tenant() -> None:
    """Both use 10 a request; one reserves 100 for it, the other 20."""
    scheduler: Scheduler[int] = Scheduler(weighted({}, tokens=2_000))
    reserved = {"cautious": 100, "exact": 20}
    flying: list[Ticket[int]] = []
    ended = dict.fromkeys(reserved, 0)
    for tenant, cost in reserved.items():
        for _ in range(3_000):
            scheduler.offer(ticket(cost, tenant))
    for _ in range(3_000):
        flying += scheduler.admit(FakeLoad(running=1_000))
        oldest = flying.pop(0)
        scheduler.release(oldest, 10)
        assert oldest.tenant is not None
        ended[oldest.tenant] += 1
    assert ended["cautious"] == pytest.approx(ended["exact"], rel=0.1)


def test_batch_waits_for_every_interactive_ticket_that_could_run() -> None:
    held = TenantConfig(max_inflight_requests=1)
    limits = Limits(
        max_inflight_tokens=100, tenant=lambda name: held if name == "held" else TenantConfig()
    )
    scheduler: Scheduler[int] = Scheduler(limits)
    for number, (cost, tenant, priority) in enumerate(
        [
            (10, "other", "batch"),
            (60, "held", "interactive"),
            (60, None, "interactive"),
            (10, "held", "interactive"),
        ]
    ):
        scheduler.offer(ticket(cost, tenant, priority, number))  # type: ignore[arg-type]
    first = scheduler.admit(FakeLoad(), batch_tokens=1_000)
    assert names(first) == [1]  # 2 does not fit beside it, and 0 would take its place
    scheduler.release(first[0], 60)
    second = scheduler.admit(FakeLoad(), batch_tokens=1_000)
    assert names(second) == [2, 3]
    second += scheduler.admit(FakeLoad(running=2), batch_tokens=1_000)
    assert names(second) == [2, 3, 0]
    scheduler.offer(ticket(10, "held", name=4))
    scheduler.offer(ticket(10, "other", "batch", name=5))
    # What waits for its own tenant only is in nobody's way.
    assert (scheduler.queued_interactive, scheduler.ready_interactive) == (1, 0)
    assert names(scheduler.admit(FakeLoad(running=3), batch_tokens=1_000)) == [5]


def test_an_engine_that_queues_gets_nothing_and_a_burst_no_more_than_its_queue_may_hold() -> None:
    scheduler: Scheduler[int] = Scheduler(Limits(max_inflight_tokens=10_000, max_waiting=4))
    for number in range(20):
        scheduler.offer(ticket(1, name=number))
    assert names(scheduler.admit(FakeLoad())) == [0, 1, 2, 3]
    assert scheduler.admit(FakeLoad()) == []  # not stepped since
    assert names(scheduler.admit(FakeLoad(running=3, waiting=1))) == [4, 5, 6]
    assert scheduler.admit(FakeLoad(running=7, waiting=4)) == []


def test_with_nothing_in_flight_one_goes_whatever_the_engine_last_said() -> None:
    scheduler: Scheduler[int] = Scheduler(Limits(max_inflight_tokens=10, max_waiting=1))
    scheduler.offer(ticket(50))
    scheduler.offer(ticket(1))
    assert len(scheduler.admit(FakeLoad(waiting=9))) == 1
    assert scheduler.admit(FakeLoad(running=1)) == []


def test_batch_may_fill_its_window_and_no_more_unless_alone() -> None:
    scheduler: Scheduler[int] = Scheduler(Limits(max_inflight_tokens=1_000))
    for number, cost in enumerate((10, 20, 31)):
        scheduler.offer(ticket(cost, None, "batch", number))
    assert scheduler.admit(FakeLoad()) == []
    first = scheduler.admit(FakeLoad(), batch_tokens=30)
    assert names(first) == [0, 1]
    for each in first:
        assert scheduler.admit(FakeLoad(running=2), batch_tokens=30) == []
        scheduler.release(each, 1)
    assert names(scheduler.admit(FakeLoad(), batch_tokens=30)) == [2]


def test_batch_starts_a_few_at_a_time_so_that_no_step_takes_in_many_prompts() -> None:
    scheduler: Scheduler[int] = Scheduler(Limits(max_inflight_tokens=1_000, batch_waiting=2))
    tickets = [ticket(1, None, "batch", number) for number in range(5)]
    for each in tickets:
        scheduler.offer(each)
    assert scheduler.admit(FakeLoad(), batch_tokens=1_000) == tickets[:2]
    assert scheduler.admit(FakeLoad(running=1), batch_tokens=1_000) == tickets[2:3]
    assert scheduler.admit(FakeLoad(running=3), batch_tokens=1_000) == tickets[3:]


def test_nothing_is_learnt_from_requests_that_were_broken_off() -> None:
    """Else ``a``, whose requests all are, would seem to use nothing and have the engine alone."""
    scheduler: Scheduler[int] = Scheduler(weighted({}))
    for _ in range(20):
        scheduler.offer(ticket(10, "a"))
        scheduler.offer(ticket(10, "b"))
    order = []
    for _ in range(20):
        (started,) = scheduler.admit(FakeLoad())
        scheduler.release(started, None if started.tenant == "a" else 10)
        order.append(started.tenant)
    assert order.count("a") == 10


def test_a_tenants_tokens_may_be_used_up_to_the_last_and_no_further() -> None:
    limits = Limits(
        max_inflight_tokens=100, tenant=lambda name: TenantConfig(max_inflight_tokens=30)
    )
    scheduler: Scheduler[int] = Scheduler(limits)
    for number, cost in enumerate((10, 20, 1, 40)):
        scheduler.offer(ticket(cost, "a", name=number))
    first = scheduler.admit(FakeLoad())
    assert names(first) == [0, 1]
    assert scheduler.tenant_inflight("a") == (2, 30)
    scheduler.release(first[1], 20)
    third = scheduler.admit(FakeLoad(running=1))
    assert names(third) == [2]
    for each in (first[0], third[0]):
        assert scheduler.admit(FakeLoad(running=1)) == []
        scheduler.release(each, 1)
    assert names(scheduler.admit(FakeLoad())) == [3]  # too large for its tenant: alone


def test_mistakes_are_refused() -> None:
    scheduler: Scheduler[int] = Scheduler(Limits(max_inflight_tokens=10))
    with pytest.raises(ValueError, match="costs -1"):
        scheduler.offer(ticket(-1))
    known = ticket(1)
    scheduler.offer(known)
    with pytest.raises(ValueError, match="offered before"):
        scheduler.offer(known)
    with pytest.raises(ValueError, match="not in flight"):
        scheduler.release(known, 1)
    assert scheduler.admit(FakeLoad()) == [known]
    assert not scheduler.cancel(known)


def test_parking_and_cancelling_leave_nothing_behind() -> None:
    """Neither tenants that are gone nor places in a heap whose class does not move."""
    limits = Limits(
        max_inflight_tokens=10, tenant=lambda name: TenantConfig(max_inflight_requests=1)
    )
    scheduler: Scheduler[int] = Scheduler(limits)
    scheduler.offer(ticket(1, "b", "batch"))
    scheduler.offer(ticket(5, "a", "batch"))
    for number in range(1_000):
        scheduler.offer(ticket(1, "a"))
        (started,) = scheduler.admit(FakeLoad())
        scheduler.release(started, 1)
        passing = ticket(1, f"t{number}")
        scheduler.offer(passing)
        assert scheduler.cancel(passing)
    assert list(scheduler._tenants) == ["b", "a"]
    assert all(len(lane._heap) < 40 for lane in scheduler._lanes.values())
