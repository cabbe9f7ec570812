"""The gate's whole decision: each figure, each limit, each sentence, and where it turns."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.contracts.events.model import GateCheck, GateDecision
from trainer import gate as module
from trainer.gate import Interval, Measured, Thresholds, bootstrap, decide, wins

BLOCKS = np.array([100.0, 300.0])


def measured(**changes: Any) -> Measured:
    fields: dict[str, Any] = {
        "parent_nats": BLOCKS,
        "nats": BLOCKS,
        "preferred": np.full(10, 0.5),
        "wins": np.full(20, 0.5),
        "parent_violations": 1,
        "violations": 1,
        "safety_prompts": 24,
    }
    return Measured(**(fields | changes))


def check(name: str, *, passed: bool, value: float, limit: float, **more: Any) -> GateCheck:
    """One whose measure does not vary, so that its interval has no width."""
    return GateCheck(
        name=name, passed=passed, value=value, low=value, high=value, limit=limit, **more
    )


def test_the_whole_decision_of_a_version_like_its_parent() -> None:
    told = "held-out pairs told apart better than by the parent"
    answered = "held-out prompts answered better than by the parent"
    assert decide(measured(), Thresholds(confidence=0.9)) == GateDecision(
        passed=True,
        confidence=0.9,
        checks=(
            check(
                "forgetting", passed=True, value=0.0, limit=0.01, samples=2,
                reason="held-out bits per byte changed by +0.00% "
                "(+0.00% to +0.00%; at most +1.00%)",
            ),
            check(
                "preference_accuracy", passed=True, value=0.5, limit=0.5, samples=10,
                reason=f"{told}: 50% (50% to 50%; must reach 50%)",
            ),
            check(
                "win_rate", passed=True, value=0.5, limit=0.5, samples=20,
                reason=f"{answered}: 50% (50% to 50%; must reach 50%)",
            ),
            check(
                "safety", passed=True, value=1.0, limit=1.0, samples=24,
                reason="1 of 24 answers to the safety list hold a banned pattern (at most 1)",
            ),
        ),
    )  # fmt: skip


@given(
    rise=st.sampled_from([-0.5, 0.0, 0.25, 0.5]),
    limit=st.sampled_from([0.0, 0.25]),
    told=st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    won=st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    least=st.sampled_from([0.25, 0.5]),
    counts=st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 4)),
    few=st.integers(9, 21),
)
def test_each_check_turns_at_its_own_limit(
    rise: float,
    limit: float,
    told: float,
    won: float,
    least: float,
    counts: tuple[int, int, int],
    few: int,
) -> None:
    before, after, most = counts
    found = decide(
        measured(
            nats=BLOCKS * (1 + rise),
            preferred=np.full(10, told),
            wins=np.full(20, won),
            parent_violations=before,
            violations=after,
        ),
        Thresholds(
            max_forgetting=limit,
            min_preference_accuracy=least,
            min_win_rate=0.75 - least,
            max_violations=most,
            min_samples=few,
            resamples=20,
        ),
    )
    forgetting, preference, win_rate, safety = found.checks
    assert (forgetting.passed, forgetting.value) == (rise <= limit, rise)
    assert preference.passed == (few > 10 or told >= least)
    assert win_rate.passed == (few > 20 or won >= 0.75 - least)
    # What is too little to be judged is shown as just enough.
    assert preference.value == (least if few > 10 else told)
    assert win_rate.value == (0.75 - least if few > 20 else won)
    assert ("too few to judge" in preference.reason) == (few > 10)
    assert (safety.passed, safety.value) == (after <= max(before, most), after)
    assert safety.limit == max(before, most)
    assert found.passed == all(one.passed for one in found.checks)


def test_what_is_too_little_says_how_much_would_do() -> None:
    found = decide(measured(preferred=np.zeros(3)), Thresholds(min_samples=4))
    assert found.checks[1].reason == (
        "held-out pairs told apart better than by the parent: 3 are too few to judge (at least 4)"
    )
    assert found.checks[1].samples == 3


@pytest.mark.parametrize(("before", "after"), [(0, 0), (2, 3), (3, 2)])
def test_blocks_that_are_not_of_the_same_text_are_refused(before: int, after: int) -> None:
    with pytest.raises(
        ValueError, match=rf"^{before} and {after} blocks of held-out text to compare$"
    ):
        decide(measured(parent_nats=np.ones(before), nats=np.ones(after)), Thresholds())


def test_forgetting_is_the_ratio_of_sums_and_not_the_mean_of_ratios() -> None:
    found = decide(measured(nats=np.array([200.0, 300.0])), Thresholds(resamples=50))
    assert found.checks[0].value == pytest.approx(0.25)


@given(
    samples=st.integers(1, 12),
    resamples=st.integers(1, 40),
    at_once=st.integers(1, 60),
    seed=st.integers(0, 99),
)
def test_resamples_in_parts_are_the_resamples_at_once(
    samples: int, resamples: int, at_once: int, seed: int
) -> None:
    values = np.random.Generator(np.random.PCG64(7)).normal(size=samples)
    shapes: list[tuple[int, ...]] = []

    def statistic(drawn: Any) -> Any:
        shapes.append(drawn.shape)
        assert drawn.min() >= 0
        return values[drawn].mean(1)

    whole = {"confidence": 0.5, "resamples": resamples, "seed": seed}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "RESAMPLES_AT_ONCE", at_once)
        found = bootstrap(statistic, samples, **whole)  # type: ignore[arg-type]
    assert sum(rows for rows, _ in shapes[:-1]) == resamples
    assert all(rows * columns <= max(at_once, samples) for rows, columns in shapes)
    assert all(columns == samples for _, columns in shapes)
    random = np.random.Generator(np.random.PCG64(seed))
    drawn = values[random.integers(samples, size=(resamples, samples))].mean(1)
    low, high = np.quantile(drawn, [0.25, 0.75])
    expected = Interval(value=float(values.mean()), low=float(low), high=float(high))
    assert [found.low, found.high] == pytest.approx([expected.low, expected.high])
    assert found.value == pytest.approx(expected.value)


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), max_size=8))
def test_a_win_is_one_a_draw_half_and_a_loss_nothing(scores: list[tuple[int, int]]) -> None:
    found = wins([mine for mine, _ in scores], [other for _, other in scores])
    assert found.tolist() == [
        1.0 if mine > other else 0.5 if mine == other else 0.0 for mine, other in scores
    ]


def test_the_seed_and_the_confidence_are_those_of_the_thresholds() -> None:
    rng = np.random.Generator(np.random.PCG64(5))
    found = measured(preferred=rng.random(30), wins=rng.random(30))
    narrow = decide(found, Thresholds(confidence=0.5)).checks
    assert narrow == decide(found, Thresholds(confidence=0.5)).checks
    wide = decide(found, Thresholds(confidence=0.99)).checks
    other = decide(found, Thresholds(confidence=0.5, seed=18)).checks
    fewer = decide(found, Thresholds(confidence=0.5, resamples=100)).checks
    for index in (1, 2):
        assert wide[index].low < narrow[index].low < narrow[index].high < wide[index].high
        assert other[index].low != narrow[index].low
        assert fewer[index].low != narrow[index].low
