"""How long a run lasts, its rates by how much of it is spent, and how it computes."""

from __future__ import annotations

import pytest
import torch

from trainer.optimizers import MuonWithAdamW, build_optimizer
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


@pytest.mark.parametrize("fast", [True, False])
def test_muon_is_left_out_where_bfloat16_is_emulated(
    fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.optimizers.bf16_pays", lambda: fast)
    model = torch.nn.Sequential(torch.nn.Embedding(4, 4), torch.nn.Linear(4, 4))
    optimizer = build_optimizer(model, rate=0.1, weight_decay=0.0, muon_rate=0.02)
    assert isinstance(optimizer, MuonWithAdamW) == fast
