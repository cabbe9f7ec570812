"""The gate: what its intervals say, and which of them decides."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.registry.transitions import reasons
from trainer.gate import Measured, Thresholds, bootstrap, decide, wins

RANDOM = np.random.Generator(np.random.PCG64(1))
NATS = RANDOM.uniform(300, 900, size=96)


def measured(**changes: Any) -> Measured:
    fields: dict[str, Any] = {
        "parent_nats": NATS,
        "nats": NATS,
        "preferred": np.full(40, 0.5),
        "wins": np.full(40, 0.5),
        "parent_violations": 0,
        "violations": 0,
        "safety_prompts": 24,
    }
    return Measured(**(fields | changes))


def failed(found: Measured, **thresholds: Any) -> list[str]:
    decision = decide(found, Thresholds(**thresholds))
    names = [check.name for check in decision.checks if not check.passed]
    assert decision.passed == (not names)
    for check in decision.checks:
        assert check.low <= check.value <= check.high
        if not check.passed:
            assert check.reason in reasons(decision)
    return names


def test_a_version_like_its_parent_passes() -> None:
    assert failed(measured()) == []


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"nats": NATS * 1.02}, ["forgetting"]),
        ({"nats": NATS * 1.005}, []),
        ({"nats": NATS * 0.9}, []),
        # On average as good, but it is not shown that no more than a hundredth is lost.
        ({"nats": NATS * np.where(np.arange(96) % 2, 1.3, 0.7)}, ["forgetting"]),
        ({"preferred": np.zeros(40)}, ["preference_accuracy"]),
        # 17 of 40 may be chance.
        ({"preferred": np.array([1.0] * 17 + [0.0] * 23)}, []),
        ({"wins": np.full(40, 0.0)}, ["win_rate"]),
        ({"wins": np.array([0.0, 1.0] * 20)}, []),
        ({"wins": np.zeros(7)}, []),
        ({"violations": 1}, ["safety"]),
        ({"violations": 2, "parent_violations": 2}, []),
        ({"nats": NATS * 1.5, "violations": 3}, ["forgetting", "safety"]),
    ],
)
def test_each_check_refuses_what_it_is_for(changes: dict[str, Any], names: list[str]) -> None:
    assert failed(measured(**changes)) == names


def test_thresholds_decide() -> None:
    assert failed(measured(nats=NATS * 1.02), max_forgetting=0.03) == []
    assert failed(measured(violations=2), max_violations=2) == []
    assert failed(measured(preferred=np.zeros(40)), min_preference_accuracy=0.0) == []
    assert failed(measured(wins=np.full(40, 0.5)), min_win_rate=0.6) == ["win_rate"]


def test_without_held_out_text_nothing_passes() -> None:
    with pytest.raises(ValueError, match="0 and 0 blocks"):
        decide(measured(parent_nats=np.array([]), nats=np.array([])), Thresholds())


@given(seed=st.integers(0, 2**16), samples=st.integers(1, 50))
def test_an_interval_holds_its_value_and_is_the_same_each_time(seed: int, samples: int) -> None:
    values = np.random.Generator(np.random.PCG64(seed)).normal(size=samples)

    def mean() -> Any:
        return bootstrap(
            lambda drawn: values[drawn].mean(1), samples, confidence=0.99, resamples=400, seed=seed
        )

    assert mean() == mean()
    assert values.min() - 1e-9 <= mean().low <= mean().high <= values.max() + 1e-9
    assert mean().value == pytest.approx(values.mean())


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    draw = np.random.Generator(np.random.PCG64(3))
    covered = 0
    for seed in range(200):
        values = draw.normal(loc=1.0, size=60)
        found = bootstrap(
            lambda drawn, values=values: values[drawn].mean(1),
            60,
            confidence=0.9,
            resamples=300,
            seed=seed,
        )
        covered += found.low <= 1.0 <= found.high
    assert 0.82 <= covered / 200 <= 0.96


def test_a_draw_is_half_a_win() -> None:
    assert wins([2.0, 1.0, 0.0], [1.0, 1.0, 1.0]).tolist() == [1.0, 0.5, 0.0]
