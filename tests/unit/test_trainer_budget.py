"""How long a run lasts, and its rates by how much of it is spent."""

from __future__ import annotations

import pytest

from trainer.training import Budget, TrainingPlan


@pytest.mark.parametrize(("compiles", "left"), [(True, 0.75), (False, 0.25)])
def test_compiling_takes_nothing_from_the_time_to_learn(compiles: bool, left: float) -> None:
    now = 0.0
    plan = TrainingPlan(
        learning_rate=1.0, seconds=100.0, seed=1, warmup=0, decay=1.0, compile=compiles
    )
    budget = Budget(plan, lambda: now)
    assert budget.factor() == 1.0
    for step, at in enumerate((50.0, 60.0, 75.0), 1):
        now = at
        budget.stepped(step)
    assert budget.factor() == pytest.approx(left)
