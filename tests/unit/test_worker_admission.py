"""Token budget: bounded, fair, never stuck on one large request."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from stream_workers.admission import Admission, TokenBudget


@given(costs=st.lists(st.integers(0, 200), max_size=30))
def test_budget_is_only_exceeded_by_a_request_alone(costs: list[int]) -> None:
    budget = TokenBudget(100)
    admitted = [cost for cost in costs if budget.admit(cost)]
    assert budget.used == sum(admitted)
    assert budget.used <= 100 or len([cost for cost in admitted if cost]) == 1
    for cost in admitted:
        budget.release(cost)
    assert budget.used == 0


async def test_waiters_enter_in_order_and_cancelled_ones_are_passed_over() -> None:
    admission = Admission(10)
    await admission.acquire(10)
    order: list[str] = []

    async def enter(name: str, cost: int) -> None:
        await admission.acquire(cost)
        order.append(name)

    tasks = [
        asyncio.create_task(enter(name, cost)) for name, cost in (("a", 6), ("b", 9), ("c", 4))
    ]
    await asyncio.sleep(0)
    assert order == []
    tasks[1].cancel()
    await asyncio.gather(tasks[1], return_exceptions=True)
    admission.release(10)
    await asyncio.gather(tasks[0], tasks[2])
    assert order == ["a", "c"]
    assert admission.budget.used == 10
