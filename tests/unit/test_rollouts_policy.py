"""Verdicts and their reasons; and, over thousands of simulated experiments, how often they err.

The simulations look at every batch and act at once, as the platform does: through ``decide``.
Their world is that of ``benchmarks.bench_ab``.
"""

from __future__ import annotations

import math
from statistics import fmean, median
from typing import Any

import numpy as np
import pytest

from benchmarks.bench_ab import (
    CLUSTERED,
    Ending,
    fixed_horizon,
    peeked,
    promoted,
    sequential,
    simulated,
)
from infra.contracts.events.model import ArmFigures
from infra.rollouts.arms import ArmSummary
from infra.rollouts.policy import GUARDRAILS, Decision, Policy, breached, decide, differs, judged
from infra.rollouts.sequential import Moments, difference, estimate, sequence

POLICY = Policy()
EXPERIMENTS = 2_000
FIXED = fixed_horizon(0.05)
BATCH = 75
LOOKS = math.ceil(2.5 * FIXED / BATCH)


def units(count: int, mean: float, variance: float | None = None) -> Moments:
    """So many units of one observation each: 0 or 1, or with ``variance``."""
    square = mean if variance is None else mean**2 + variance
    return Moments(
        units=count,
        total=count * mean,
        count=count,
        total_squared=count * square,
        cross=count * mean,
        count_squared=count,
    )


def arm(
    count: int = 2_000,
    *,
    liked: float = 0.5,
    labels: int | None = None,
    failed: float = 0.01,
    ttft_ms: float = 100.0,
    itl_ms: float = 20.0,
    tokens: float = 100.0,
    edited: float = 0.2,
) -> ArmSummary:
    return ArmSummary(
        figures=ArmFigures(version="v", requests=count),
        outcome=units(count if labels is None else labels, liked),
        edits=units(count, edited, 0.04),
        errors=units(count, failed),
        ttft=units(count, math.log(ttft_ms), 0.25),
        itl=units(count, math.log(itl_ms), 0.1),
        tokens=units(count, tokens, 2_500),
    )


def decided(candidate: ArmSummary, policy: Policy = POLICY, age_hours: float = 1.0) -> Decision:
    return decide(arm(), candidate, policy, age_hours=age_hours)


def failed(decision: Decision) -> list[str]:
    return [check.name for check in decision.checks if not check.passed]


def test_one_shown_better_is_promoted() -> None:
    found = decided(arm(liked=0.56))
    assert (found.verdict, found.alarms, failed(found)) == ("promote", (), [])
    assert "rating: 56.0%, against 50.0%, by 2000 and 2000 units; +6.0 points (+1.2 to" in (
        found.reason
    )
    assert not found.ended


def test_one_shown_worse_is_rolled_back() -> None:
    found = decided(arm(liked=0.44))
    assert (found.verdict, failed(found)) == ("rollback", ["outcome"])
    assert "shown to be worse: rating: 44.0%" in found.reason


def test_one_that_shows_nothing_yet_is_held() -> None:
    found = decided(arm(liked=0.52))
    assert (found.verdict, failed(found)) == ("hold", ["outcome"])
    assert "not shown to be better or worse" in found.reason


@pytest.mark.parametrize(
    ("harm", "name", "says"),
    [
        ({"failed": 0.08}, "errors", "failed requests: 8.0%, against 1.0%; +7.0 points"),
        ({"ttft_ms": 180.0}, "ttft", "TTFT: 180.0 ms, against 100.0 ms; +80%"),
        ({"itl_ms": 40.0}, "itl", "ITL: 40.0 ms, against 20.0 ms; +100%"),
    ],
)
def test_a_breached_guardrail_takes_back_even_a_better_one(
    harm: dict[str, Any], name: str, says: str
) -> None:
    found = decided(arm(liked=0.6, **harm))
    assert (found.verdict, failed(found)) == ("rollback", [name])
    assert says in found.reason
    assert [breached(check) for check in found.checks[1:]].count(True) == 1


@pytest.mark.parametrize("number", [1, 2, 3])
def test_the_guardrails_share_the_error_that_is_allowed(number: int) -> None:
    """Each is as wide as at a third of it: any of them takes a candidate out of service."""
    check = decided(arm()).checks[number]
    measured = [arm().errors, arm().ttft, arm().itl][number - 1]
    bounded = check.name == "errors"
    one = estimate(measured, bounded=bounded)
    assert one is not None
    expected = sequence(
        difference(one, one),
        confidence=1 - 0.05 / 3,
        effect=check.limit if bounded else math.log1p(check.limit),
    ).high
    assert check.high == pytest.approx(expected if bounded else math.expm1(expected))


def test_a_broken_candidate_is_taken_back_before_anybody_has_rated_it() -> None:
    found = decide(arm(), arm(25, labels=0, failed=1.0), POLICY, age_hours=0.1)
    assert found.verdict == "rollback"
    assert not judged(found.checks[0])


def test_a_rise_that_may_be_chance_stands_against_a_promotion_only() -> None:
    found = decided(arm(liked=0.6, ttft_ms=127.0))
    assert (found.verdict, failed(found)) == ("hold", ["ttft"])
    assert "shown to be better" in found.reason
    assert "TTFT: 127.0 ms" in found.reason


def test_fewer_units_than_asked_for_are_not_promoted_but_rolled_back() -> None:
    better, worse = arm(80, liked=0.99), arm(80, liked=0.01)
    assert decided(better).verdict == "hold"
    assert "by at least 100 units of each" in decided(better).reason
    assert decided(better, Policy(min_samples=50)).verdict == "promote"
    assert decided(worse).verdict == "rollback"


def test_a_promotion_may_ask_for_more_than_any_lift() -> None:
    found = decided(arm(liked=0.56), Policy(min_lift=0.03))
    assert found.verdict == "hold"
    assert "must be above +3.0 points" in found.reason


@pytest.mark.parametrize(
    ("trick", "name"),
    [({"edited": 0.4}, "edits"), ({"tokens": 170.0}, "length"), ({"tokens": 60.0}, "length")],
)
def test_one_that_pleases_for_the_wrong_reason_is_held_for_a_person(
    trick: dict[str, Any], name: str
) -> None:
    found = decided(arm(liked=0.6, **trick))
    assert found.verdict == "hold"
    assert [alarm.partition(":")[0] for alarm in found.alarms] == [name]
    assert found.alarms[0] in found.reason
    assert decided(arm(liked=0.5, **trick)).alarms == (), "the outcome does not rise"
    assert decided(arm(40, liked=0.6, **trick)).alarms == (), "it may be chance"


@pytest.mark.parametrize("at_end", ["hold", "rollback", "promote"])
def test_an_undecided_experiment_ends_as_the_policy_says(at_end: Any) -> None:
    policy = Policy(at_end=at_end, max_hours=48)
    assert decided(arm(), policy, age_hours=47.9).verdict == "hold"
    found = decided(arm(), policy, age_hours=48)
    assert (found.verdict, found.ended) == (at_end, True)
    assert "undecided after 48 hours" in found.reason
    better = decided(arm(liked=0.56), policy, age_hours=48)
    assert (better.verdict, better.ended) == ("promote", False)


@pytest.mark.parametrize(
    ("candidate", "says"),
    [
        (arm(ttft_ms=127.0), "TTFT"),
        (arm(liked=0.52, tokens=170.0), "length"),
        (arm(5), "too little was seen of it"),
    ],
)
def test_none_is_promoted_at_the_end_that_something_stands_against(
    candidate: ArmSummary, says: str
) -> None:
    found = decided(candidate, Policy(at_end="promote"), age_hours=400)
    assert (found.verdict, found.ended) == ("hold", True)
    assert says in found.reason


def test_nothing_seen_yet_is_held_and_said_so() -> None:
    empty = ArmSummary(figures=ArmFigures(version="v"))
    found = decide(empty, empty, POLICY, age_hours=0.0)
    assert found.verdict == "hold"
    assert not any(judged(check) for check in found.checks)
    assert "too few to tell (at least 100 of each)" in found.reason


def test_wild_latencies_overflow_nothing() -> None:
    wild = ArmSummary(figures=ArmFigures(version="v"), ttft=units(20, 5.0, 130.0))
    found = decide(wild, wild, Policy(max_ttft_rise=0.0), age_hours=0.0)
    assert all(math.isfinite(check.high) for check in found.checks)


@pytest.mark.parametrize("wrong", [{"confidence": 1.0}, {"confidence": 0.0}, {"effect": 0.0}])
def test_a_policy_that_cannot_be_kept_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Policy(**wrong)  # type: ignore[arg-type]


def test_only_a_decision_that_says_something_new_differs() -> None:
    def event(decision: Decision) -> Any:
        return decision.event(
            model="m", experiment="e", revision=3, look=7, decided_at_ms=5, acted=False
        )

    held = decided(arm(liked=0.52))
    published = event(held)
    assert (published.verdict, published.look, published.checks) == ("hold", 7, held.checks)
    assert differs(held, None)
    assert not differs(held, published)
    assert not differs(decided(arm(liked=0.515)), published), "other numbers"
    assert differs(decided(arm(liked=0.6)), published), "another verdict"
    assert differs(decided(arm(liked=0.52, ttft_ms=127.0)), published), "another failed check"
    long = decided(arm(liked=0.52, tokens=170.0))
    assert differs(long, published), "another alarm"
    assert not differs(decided(arm(liked=0.52, tokens=171.0)), event(long)), "the same alarm"


def say(figures: str) -> None:
    """With ``pytest -s``, and beside a failure."""
    print(f"\n{figures}")  # noqa: T201 - the figures are what one reads this test for


def share(endings: list[Ending], verdict: str) -> float:
    return fmean(end.verdict == verdict for end in endings)


def test_a_candidate_that_is_no_different_is_seldom_promoted_however_often_one_looks() -> None:
    same = simulated(0.0, experiments=EXPERIMENTS, looks=LOOKS, batch=BATCH)
    ends = [sequential(*arms) for arms in same]
    usual = [peeked(*arms, POLICY.confidence) for arms in same]
    say(
        f"A/A, {LOOKS} looks up to {LOOKS * BATCH} users an arm: promoted {promoted(ends):.2%}, "
        f"rolled back {share(ends, 'rollback'):.2%}; by a z-test peeked at {promoted(usual):.2%}"
    )
    assert promoted(ends) <= 0.05
    assert share(ends, "rollback") <= 0.05
    assert promoted(usual) > 0.15


def test_a_true_lift_is_found_about_as_soon_as_by_a_test_of_fixed_horizon() -> None:
    ends = [
        sequential(*arms)
        for arms in simulated(0.05, experiments=EXPERIMENTS, looks=LOOKS, batch=BATCH)
    ]
    samples = [BATCH * end.looks for end in ends]
    say(
        f"A/B, 5 points: found {promoted(ends):.2%}, after {fmean(samples):.0f} users an arm in "
        f"the mean ({median(samples):.0f} median); fixed horizon at 90% power: {FIXED}"
    )
    assert promoted(ends) >= 0.9
    assert fmean(samples) <= FIXED


def test_harm_is_found_and_taken_back() -> None:
    ends = [
        sequential(*arms)
        for arms in simulated(-0.05, experiments=EXPERIMENTS, looks=LOOKS, batch=BATCH)
    ]
    samples = fmean(BATCH * end.looks for end in ends)
    say(f"5 points worse: rolled back {share(ends, 'rollback'):.2%} after {samples:.0f} users")
    assert share(ends, "rollback") >= 0.9
    assert promoted(ends) <= 0.001


def test_users_with_several_labels_each_do_not_raise_the_error_but_labels_as_users_would() -> None:
    same = simulated(0.0, experiments=EXPERIMENTS, looks=LOOKS, batch=BATCH, users=CLUSTERED)
    ends = [sequential(*arms) for arms in same]
    naive = [sequential(*arms, naive=True) for arms in same]
    say(
        f"A/A with up to {CLUSTERED.labels} labels a user: promoted {promoted(ends):.2%}; "
        f"by the variance of labels {promoted(naive):.2%}"
    )
    assert promoted(ends) <= 0.05
    assert promoted(naive) > 0.075


def test_guardrails_seldom_take_back_a_candidate_whose_rises_are_just_at_the_limits() -> None:
    """The worst that is allowed, at 60 looks of 25 users each; all three together stay below 5%."""
    random = np.random.Generator(np.random.PCG64(11))
    experiments, looks, batch = 400, 60, 25
    shape = (2, experiments, looks, batch)
    rise = np.array([0.0, 1.0])[:, None, None, None]
    values = {
        "errors": (random.random(shape) < 0.01 + rise * POLICY.max_error_rise).astype(float),
        "ttft": random.normal(5 + rise * math.log1p(POLICY.max_ttft_rise), 0.7, shape),
        "itl": random.normal(3 + rise * math.log1p(POLICY.max_itl_rise), 0.3, shape),
    }
    sums = {
        name: np.stack([drawn.sum(-1), (drawn**2).sum(-1)], -1).cumsum(2).tolist()
        for name, drawn in values.items()
    }

    def summary(side: int, number: int, look: int) -> ArmSummary:
        count = batch * (look + 1)
        moments = {}
        for name, found in sums.items():
            total, squared = found[side][number][look]
            moments[name] = Moments(
                units=count,
                total=total,
                count=count,
                total_squared=squared,
                cross=total,
                count_squared=count,
            )
        return ArmSummary(figures=ArmFigures(version="v"), **moments)

    taken_back = fmean(
        any(
            decide(summary(0, number, look), summary(1, number, look), POLICY, age_hours=0).verdict
            == "rollback"
            for look in range(looks)
        )
        for number in range(experiments)
    )
    say(f"{GUARDRAILS} guardrails at their limits: rolled back {taken_back:.2%}")
    assert taken_back <= 0.05
