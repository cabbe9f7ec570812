"""A decision's every figure and sentence, put together anew from what the arms have shown."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.contracts.events.model import ArmFigures, GateCheck
from infra.rollouts.arms import ArmSummary
from infra.rollouts.policy import Policy, breached, decide, differs, judged
from infra.rollouts.sequential import Interval, Moments, difference, estimate, log_of, sequence

POLICIES = st.builds(
    Policy,
    metric=st.sampled_from(["rating", "score"]),
    confidence=st.sampled_from([0.9, 0.95]),
    min_samples=st.sampled_from([1, 100, 2_000]),
    min_lift=st.sampled_from([0.0, 0.02]),
    effect=st.sampled_from([0.05, 0.2]),
    max_error_rise=st.sampled_from([0.0, 0.02]),
    max_ttft_rise=st.sampled_from([0.0, 0.25]),
    max_itl_rise=st.sampled_from([0.25, 0.5]),
    max_length_drift=st.sampled_from([0.001, 0.5]),
    max_edit_rise=st.sampled_from([0.0, 0.1]),
    max_hours=st.just(48.0),
    at_end=st.sampled_from(["hold", "rollback", "promote"]),
)


def units(count: int, mean: float, variance: float) -> Moments:
    """So many units of one observation each."""
    return Moments(
        units=count,
        total=count * mean,
        count=count,
        total_squared=count * (mean**2 + variance),
        cross=count * mean,
        count_squared=count,
    )


COUNTS = st.sampled_from([0, 19, 20, 150, 5_000])


@st.composite
def arms(draw: st.DrawFn) -> ArmSummary:
    def some(mean: float, variance: float) -> Moments:
        return units(draw(COUNTS), mean, variance)

    liked = draw(st.sampled_from([0.2, 0.5, 0.53, 0.8]))
    failed = draw(st.sampled_from([0.01, 0.02, 0.2]))
    return ArmSummary(
        figures=ArmFigures(version="v"),
        outcome=some(liked, liked * (1 - liked)),
        edits=some(draw(st.sampled_from([0.2, 0.25, 0.6])), 0.04),
        errors=some(failed, failed * (1 - failed)),
        ttft=some(math.log(draw(st.sampled_from([100.0, 110.0, 200.0]))), 0.25),
        itl=some(math.log(draw(st.sampled_from([20.0, 27.0, 60.0]))), 0.1),
        tokens=some(draw(st.sampled_from([0.0, 60.0, 100.0, 200.0])), 2_500),
    )


def between(
    before: Moments, after: Moments, alpha: float, effect: float, *, bounded: bool = True
) -> Interval | None:
    one, other = estimate(before, bounded=bounded), estimate(after, bounded=bounded)
    if one is None or other is None:
        return None
    return sequence(difference(other, one), confidence=1 - alpha, effect=effect)


def points(share: float) -> str:
    return f"{100 * share:+.1f}"


def check(
    name: str, found: Interval | None, limit: float, samples: int, passed: bool, reason: str
) -> GateCheck:
    value, low, high = (limit,) * 3 if found is None else (found.value, found.low, found.high)
    return GateCheck(
        name=name,
        passed=passed,
        value=pytest.approx(value),  # type: ignore[arg-type]
        low=pytest.approx(low),  # type: ignore[arg-type]
        high=pytest.approx(high),  # type: ignore[arg-type]
        limit=limit,
        samples=samples,
        reason=reason,
    )


def percent(moments: Moments) -> str:
    return "no data" if not moments.count else f"{moments.total / moments.count:.1%}"


def outcome_of(stable: Moments, candidate: Moments, policy: Policy) -> GateCheck:
    found = between(stable, candidate, 1 - policy.confidence, policy.effect)
    fewest = min(stable.units, candidate.units)
    says = (
        f"{policy.metric}: {percent(candidate)}, against {percent(stable)}, "
        f"by {candidate.units} and {stable.units} units; "
    )
    if found is None:
        says += f"too few to tell (at least {max(policy.min_samples, 20)} of each)"
    else:
        says += (
            f"{points(found.value)} points ({points(found.low)} to {points(found.high)} points), "
            f"must be above {points(policy.min_lift)} points"
        )
        if fewest < policy.min_samples:
            says += f", by at least {policy.min_samples} units of each"
    passed = found is not None and found.low > policy.min_lift and fewest >= policy.min_samples
    return check("outcome", found, policy.min_lift, fewest, passed, says)


def errors_of(stable: Moments, candidate: Moments, policy: Policy) -> GateCheck:
    limit = policy.max_error_rise
    found = between(stable, candidate, (1 - policy.confidence) / 3, max(limit, 0.01))
    says = f"failed requests: {percent(candidate)}, against {percent(stable)}; "
    if found is None:
        says += "too few to tell (at least 20 units of each)"
    else:
        says += (
            f"{points(found.value)} points ({points(found.low)} to {points(found.high)} points), "
            f"at most {points(limit)} points"
        )
    passed = found is None or found.value <= limit
    return check("errors", found, limit, min(stable.units, candidate.units), passed, says)


def slower(
    name: str, stable: Moments, candidate: Moments, limit: float, policy: Policy
) -> GateCheck:
    alpha, effect = (1 - policy.confidence) / 3, max(math.log1p(limit), 0.01)
    logs = between(stable, candidate, alpha, effect, bounded=False)
    found = logs and Interval(
        value=math.expm1(logs.value), low=math.expm1(logs.low), high=math.expm1(logs.high)
    )
    before, after = (
        f"{math.exp(one.total / one.count):.1f} ms" if one.count else "no data"
        for one in (stable, candidate)
    )
    says = f"{name.upper()}: {after}, against {before}; "
    if found is None:
        says += "too few to tell (at least 20 units of each)"
    else:
        says += f"{found.value:+.0%} ({found.low:+.0%} to {found.high:+.0%}), at most {limit:+.0%}"
    passed = found is None or found.value <= limit
    return check(name, found, limit, min(stable.units, candidate.units), passed, says)


def alarms_of(stable: ArmSummary, candidate: ArmSummary, policy: Policy) -> list[str]:
    found: list[str] = []
    alpha, limit = (1 - policy.confidence) / 2, policy.max_edit_rise
    rise = between(stable.edits, candidate.edits, alpha, max(limit, 0.01))
    if rise is not None and rise.low > limit:
        found.append(
            f"edits: the outcome rises, yet people change {percent(candidate.edits)} of the "
            f"answers they edit, against {percent(stable.edits)}; {points(rise.value)} points "
            f"({points(rise.low)} to {points(rise.high)} points), at most {points(limit)} points"
        )
    before, after = (estimate(one.tokens, bounded=False) for one in (stable, candidate))
    if before is not None and after is not None and before.value > 0 and after.value > 0:
        logarithm = math.log1p(policy.max_length_drift)
        drift = sequence(
            difference(log_of(after), log_of(before)),
            confidence=1 - alpha,
            effect=max(logarithm, 0.01),
        )
        if drift.low > logarithm or drift.high < -logarithm:
            found.append(
                f"length: the outcome rises, yet an answer has {after.value:.0f} tokens, against "
                f"{before.value:.0f}; {math.expm1(drift.value):+.0%}, at most "
                f"{policy.max_length_drift:+.0%} and at least {math.expm1(-logarithm):+.0%}"
            )
    return found


@given(stable=arms(), candidate=arms(), policy=POLICIES, hours=st.sampled_from([1.0, 48.0, 99.6]))
def test_every_figure_and_every_sentence(
    stable: ArmSummary, candidate: ArmSummary, policy: Policy, hours: float
) -> None:
    agrees(stable, candidate, policy, hours)


def arm(
    *, liked: float = 0.5, edited: float = 0.2, tokens: float = 100.0, failed: float = 0.01
) -> ArmSummary:
    return ArmSummary(
        figures=ArmFigures(version="v"),
        outcome=units(5_000, liked, liked * (1 - liked)),
        edits=units(5_000, edited, 0.04),
        errors=units(5_000, failed, failed * (1 - failed)),
        ttft=units(5_000, math.log(100.0), 0.25),
        itl=units(5_000, math.log(20.0), 0.1),
        tokens=units(5_000, tokens, 2_500),
    )


@pytest.mark.parametrize("edited", [0.2, 0.6])
@pytest.mark.parametrize("tokens", [50.0, 100.0, 200.0])
@pytest.mark.parametrize("failed", [0.01, 0.02, 0.2])
@pytest.mark.parametrize("liked", [0.4, 0.5, 0.8])
def test_one_that_pleases_or_does_not_with_all_that_may_stand_against_it(
    edited: float, tokens: float, failed: float, liked: float
) -> None:
    candidate = arm(liked=liked, edited=edited, tokens=tokens, failed=failed)
    for at_end, hours in (("hold", 1.0), ("promote", 48.0), ("rollback", 48.0)):
        policy = Policy(at_end=at_end, max_hours=48.0, max_error_rise=0.005)  # type: ignore[arg-type]
        agrees(arm(), candidate, policy, hours)


def agrees(stable: ArmSummary, candidate: ArmSummary, policy: Policy, hours: float) -> None:
    """Whether a decision is that of the rules, put together anew."""
    found = decide(stable, candidate, policy, age_hours=hours)
    outcome = outcome_of(stable.outcome, candidate.outcome, policy)
    rails = [
        errors_of(stable.errors, candidate.errors, policy),
        slower("ttft", stable.ttft, candidate.ttft, policy.max_ttft_rise, policy),
        slower("itl", stable.itl, candidate.itl, policy.max_itl_rise, policy),
    ]
    assert list(found.checks) == [outcome, *rails]
    assert (found.stable, found.candidate) == (stable, candidate)
    assert found.confidence == policy.confidence
    measured = found.checks[0]
    told = min(stable.outcome.units, candidate.outcome.units) >= 20
    alarms = alarms_of(stable, candidate, policy) if told and measured.value > 0 else []
    assert list(found.alarms) == alarms

    harm = [one.reason for one in found.checks[1:] if one.low > one.limit]
    if told and measured.high < 0:
        harm.insert(0, outcome.reason)
    against = [one.reason for one in rails if not one.passed] + alarms
    ended = False
    if harm:
        verdict, reason = "rollback", f"the candidate is shown to be worse: {'; '.join(harm)}"
    elif outcome.passed and not against:
        verdict, reason = "promote", f"the candidate is shown to be better: {outcome.reason}"
    else:
        if outcome.passed:
            state = f"shown to be better, {outcome.reason}; but {'; '.join(against)}"
        else:
            state = f"not shown to be better or worse: {'; '.join([outcome.reason, *against])}"
        verdict, reason = "hold", state
        if hours >= policy.max_hours:
            ended, verdict = True, policy.at_end
            over = f"undecided after {hours:.0f} hours"
            reason = f"{over}, so {policy.at_end}: {state}"
            seen = min(stable.errors.units, candidate.errors.units) >= 20
            if policy.at_end == "promote" and (against or not seen):
                verdict = "hold"
                said = "; ".join(against) or "too little was seen of it"
                reason = f"{over}, and not promoted then, as it would be: {said}"
    assert (found.verdict, found.ended) == (verdict, ended)
    assert found.reason == reason


@given(arms(), arms(), POLICIES)
def test_the_event_of_a_decision_says_the_same_and_is_no_news(
    stable: ArmSummary, candidate: ArmSummary, policy: Policy
) -> None:
    found = decide(stable, candidate, policy, age_hours=0.0)
    how: dict[str, Any] = {
        "model": "m",
        "experiment": "e",
        "revision": 3,
        "look": 7,
        "decided_at_ms": 5,
        "acted": True,
    }
    event = found.event(**how)
    assert {name: getattr(event, name) for name in how} == how
    assert (event.verdict, event.reason, event.confidence) == (
        found.verdict,
        found.reason,
        policy.confidence,
    )
    assert (event.checks, event.alarms) == (found.checks, found.alarms)
    assert (event.stable, event.candidate) == (stable.figures, candidate.figures)
    assert not differs(found, event)
    assert differs(found, None)


def test_a_limit_is_breached_beyond_it_and_a_check_is_judged_by_its_width() -> None:
    def of(low: float, high: float) -> GateCheck:
        return GateCheck(
            name="n", passed=True, value=low, low=low, high=high, limit=0.5, samples=1, reason="r"
        )

    assert [breached(one) for one in (of(0.5, 0.9), of(0.51, 0.9))] == [False, True]
    assert [judged(one) for one in (of(0.5, 0.5), of(0.5, 0.6), of(0.4, 0.5))] == [
        False,
        True,
        True,
    ]


@pytest.mark.parametrize("confidence", [0.0, 1.0, -0.1, 1.1])
def test_a_confidence_that_is_none_is_refused(confidence: float) -> None:
    with pytest.raises(
        ValueError, match=rf"^confidence must lie between 0 and 1, not be {confidence}$"
    ):
        Policy(confidence=confidence)


@pytest.mark.parametrize("effect", [0.0, -0.1])
def test_an_effect_that_is_none_is_refused(effect: float) -> None:
    with pytest.raises(ValueError, match=rf"^effect must be above 0, not {effect}$"):
        Policy(effect=effect)


def test_a_ratio_beyond_all_measure_is_cut_off() -> None:
    wild = ArmSummary(figures=ArmFigures(version="v"), ttft=units(20, 5.0, 1_000.0))
    found = decide(wild, wild, Policy(), age_hours=0.0)
    assert found.checks[2].high == math.expm1(50.0)
