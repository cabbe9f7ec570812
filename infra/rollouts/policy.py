"""What the two arms' figures say should become of the candidate, and why. Pure.

    promote   its outcome is shown better, and nothing stands against it
    rollback  its outcome is shown worse, or a guardrail is shown breached
    hold      anything else: more has to be seen, or a person has to look

"Shown" is by a confidence sequence, so one may look after every event. Of all experiments whose
candidate is no different, at most ``1 - confidence`` ever show it better or worse, half of these
better. The guardrails share as much again, a third each (Bonferroni): any one of them takes a
candidate out of service, so it is the chance that any is wrong which must be bounded. The two
watches for a candidate that pleases without being better share as much once more: they only hold
up a promotion.

Knows nothing of topics, nor of how a verdict is carried out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from infra.contracts.events.model import GateCheck, RolloutDecided, Verdict
from infra.rollouts.arms import ArmSummary, Metric
from infra.rollouts.sequential import (
    FEWEST_UNITS,
    Interval,
    Moments,
    difference,
    estimate,
    log_of,
    sequence,
)

AtEnd = Literal["hold", "rollback", "promote"]
POINTS = " points"
GUARDRAILS = 3
WATCHES = 2
FINEST_EFFECT = 0.01
"""Sequences whose limit is smaller are tuned to this."""
LARGEST_LOGARITHM = 50.0
"""Of a ratio: a few latencies that differ wildly give an interval whose end overflows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """When to decide what. Shares and lifts are fractions: 0.05 is five points.

    ``min_samples``: units of each arm with feedback before a promotion. ``min_lift``: of the
    outcome, that a promotion must be shown to exceed. ``effect``: the lift to find soonest.
    ``max_error_rise``: of the error rate, in absolute terms. ``max_ttft_rise``, ``max_itl_rise``:
    of the geometric means, relative. ``max_length_drift``: of the mean answer, relative, either
    way. ``max_edit_rise``: of the share of an answer that people change, absolute. ``per_user`` is
    of the fold. After ``max_hours`` an undecided experiment ends as ``at_end`` says; ``auto``:
    whether verdicts are carried out.
    """

    auto: bool = False
    metric: Metric = "rating"
    confidence: float = 0.95
    min_samples: int = 100
    min_lift: float = 0.0
    effect: float = 0.05
    max_error_rise: float = 0.02
    max_ttft_rise: float = 0.25
    max_itl_rise: float = 0.25
    max_length_drift: float = 0.5
    max_edit_rise: float = 0.1
    per_user: int = 5
    max_hours: float = 336.0
    at_end: AtEnd = "hold"

    def __post_init__(self) -> None:
        if not 0 < self.confidence < 1:
            raise ValueError(f"confidence must lie between 0 and 1, not be {self.confidence}")
        if self.effect <= 0:
            raise ValueError(f"effect must be above 0, not {self.effect}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """A verdict with its grounds. ``reason`` is for a person who may want to act otherwise.

    ``checks`` begin with ``outcome``; those that did not pass stand against a promotion. Each of
    ``alarms`` begins with its name and a colon. ``ended``: the verdict is that of ``at_end``.
    """

    verdict: Verdict
    reason: str
    checks: tuple[GateCheck, ...]
    alarms: tuple[str, ...]
    stable: ArmSummary
    candidate: ArmSummary
    confidence: float
    ended: bool = False

    def event(
        self,
        *,
        model: str,
        experiment: str,
        revision: int,
        look: int,
        decided_at_ms: int,
        acted: bool,
    ) -> RolloutDecided:
        """The event of it."""
        return RolloutDecided(
            model=model,
            experiment=experiment,
            revision=revision,
            verdict=self.verdict,
            reason=self.reason,
            decided_at_ms=decided_at_ms,
            look=look,
            confidence=self.confidence,
            stable=self.stable.figures,
            candidate=self.candidate.figures,
            checks=self.checks,
            alarms=self.alarms,
            acted=acted,
        )


def decide(
    stable: ArmSummary, candidate: ArmSummary, policy: Policy, *, age_hours: float
) -> Decision:
    """What to do after ``age_hours`` of an experiment. The same figures give the same decision."""
    outcome = _outcome(stable, candidate, policy)
    guardrails = _guardrails(stable, candidate, policy)
    better = judged(outcome) and outcome.value > 0
    alarms = _alarms(stable, candidate, policy) if better else ()
    verdict, reason, ended = _verdict(outcome, guardrails, alarms, policy, age_hours)
    return Decision(
        verdict=verdict,
        reason=reason,
        checks=(outcome, *guardrails),
        alarms=alarms,
        stable=stable,
        candidate=candidate,
        confidence=policy.confidence,
        ended=ended,
    )


def differs(decision: Decision, last: RolloutDecided | None) -> bool:
    """Whether a decision says something new: of verdict, failed checks or alarms, not of numbers.

    ``last``: the last one published of the same experiment.
    """
    if last is None:
        return True
    return _gist(decision.verdict, decision.checks, decision.alarms) != _gist(
        last.verdict, last.checks, last.alarms
    )


def judged(check: GateCheck) -> bool:
    """Whether a check had enough samples for an interval: else both its ends are the limit."""
    return (check.low, check.high) != (check.limit, check.limit)


def breached(check: GateCheck) -> bool:
    """Whether a guardrail is shown to be breached, not just so far."""
    return check.low > check.limit


def _gist(
    verdict: Verdict, checks: tuple[GateCheck, ...], alarms: tuple[str, ...]
) -> tuple[Verdict, set[str], set[str]]:
    return (
        verdict,
        {check.name for check in checks if not check.passed},
        {alarm.partition(":")[0] for alarm in alarms},
    )


def _verdict(
    outcome: GateCheck,
    guardrails: tuple[GateCheck, ...],
    alarms: tuple[str, ...],
    policy: Policy,
    age_hours: float,
) -> tuple[Verdict, str, bool]:
    harm = [check.reason for check in guardrails if breached(check)]
    if judged(outcome) and outcome.high < 0:
        harm.insert(0, outcome.reason)
    if harm:
        return "rollback", f"the candidate is shown to be worse: {'; '.join(harm)}", False
    against = [*(check.reason for check in guardrails if not check.passed), *alarms]
    if outcome.passed and not against:
        return "promote", f"the candidate is shown to be better: {outcome.reason}", False
    state = (
        f"shown to be better, {outcome.reason}; but {'; '.join(against)}"
        if outcome.passed
        else "; ".join((f"not shown to be better or worse: {outcome.reason}", *against))
    )
    if age_hours < policy.max_hours:
        return "hold", state, False
    over = f"undecided after {age_hours:.0f} hours"
    if policy.at_end == "promote" and (against or not judged(guardrails[0])):
        against = against or ["too little was seen of it"]
        return "hold", f"{over}, and not promoted then, as it would be: {'; '.join(against)}", True
    return policy.at_end, f"{over}, so {policy.at_end}: {state}", True


def _outcome(stable: ArmSummary, candidate: ArmSummary, policy: Policy) -> GateCheck:
    interval = _interval(
        stable.outcome, candidate.outcome, confidence=policy.confidence, effect=policy.effect
    )
    limit, least = policy.min_lift, policy.min_samples
    samples = min(stable.outcome.units, candidate.outcome.units)
    seen = (
        f"{policy.metric}: {_share(candidate.outcome)}, against {_share(stable.outcome)}, "
        f"by {candidate.outcome.units} and {stable.outcome.units} units"
    )
    if interval is None:
        says = f"{seen}; too few to tell (at least {max(least, FEWEST_UNITS)} of each)"
    else:
        more = f", by at least {least} units of each" if samples < least else ""
        says = f"{seen}; {_spelt(interval, _points)}, must be above {_points(limit)}{more}"
    passed = interval is not None and interval.low > limit and samples >= least
    return _check("outcome", interval, limit, samples, says, passed=passed)


def _guardrails(stable: ArmSummary, candidate: ArmSummary, policy: Policy) -> tuple[GateCheck, ...]:
    confidence = _shared(policy.confidence, GUARDRAILS)
    limit = policy.max_error_rise
    return (
        _guardrail(
            "errors",
            _interval(
                stable.errors, candidate.errors, confidence=confidence, effect=_effect(limit)
            ),
            limit,
            min(stable.errors.units, candidate.errors.units),
            f"failed requests: {_share(candidate.errors)}, against {_share(stable.errors)}",
            _points,
        ),
        _slower("ttft", stable.ttft, candidate.ttft, policy.max_ttft_rise, confidence),
        _slower("itl", stable.itl, candidate.itl, policy.max_itl_rise, confidence),
    )


def _slower(
    name: str, stable: Moments, candidate: Moments, limit: float, confidence: float
) -> GateCheck:
    """Of logarithms: the difference of their means is the ratio of geometric means."""
    logs = _interval(
        stable, candidate, confidence=confidence, effect=_effect(math.log1p(limit)), bounded=False
    )
    interval = None
    if logs is not None:
        interval = Interval(value=_rise(logs.value), low=_rise(logs.low), high=_rise(logs.high))
    return _guardrail(
        name,
        interval,
        limit,
        min(stable.units, candidate.units),
        f"{name.upper()}: {_milliseconds(candidate)}, against {_milliseconds(stable)}",
        _percent,
    )


def _guardrail(
    name: str,
    interval: Interval | None,
    limit: float,
    samples: int,
    seen: str,
    shown: Callable[[float], str],
) -> GateCheck:
    if interval is None:
        says = f"{seen}; too few to tell (at least {FEWEST_UNITS} units of each)"
    else:
        says = f"{seen}; {_spelt(interval, shown)}, at most {shown(limit)}"
    # A rise that may be chance is no ground to roll back on, and none to promote on either.
    passed = interval is None or interval.value <= limit
    return _check(name, interval, limit, samples, says, passed=passed)


def _alarms(stable: ArmSummary, candidate: ArmSummary, policy: Policy) -> tuple[str, ...]:
    """Signs that the outcome rose for the wrong reason."""
    confidence, alarms = _shared(policy.confidence, WATCHES), []
    limit = policy.max_edit_rise
    rise = _interval(stable.edits, candidate.edits, confidence=confidence, effect=_effect(limit))
    if rise is not None and rise.low > limit:
        alarms.append(
            f"edits: the outcome rises, yet people change {_share(candidate.edits)} of the answers "
            f"they edit, against {_share(stable.edits)}; {_spelt(rise, _points)}, at most "
            f"{_points(limit)}"
        )
    before = estimate(stable.tokens, bounded=False)
    after = estimate(candidate.tokens, bounded=False)
    if before is not None and after is not None and before.value > 0 and after.value > 0:
        limit = math.log1p(policy.max_length_drift)
        drift = sequence(
            difference(log_of(after), log_of(before)), confidence=confidence, effect=_effect(limit)
        )
        if drift.low > limit or drift.high < -limit:
            alarms.append(
                f"length: the outcome rises, yet an answer has {after.value:.0f} tokens, against "
                f"{before.value:.0f}; {_percent(_rise(drift.value))}, at most "
                f"{_percent(_rise(limit))} and at least {_percent(_rise(-limit))}"
            )
    return tuple(alarms)


def _interval(
    stable: Moments, candidate: Moments, *, confidence: float, effect: float, bounded: bool = True
) -> Interval | None:
    """Of candidate less stable; ``None`` where either has too few units."""
    before, after = estimate(stable, bounded=bounded), estimate(candidate, bounded=bounded)
    if before is None or after is None:
        return None
    return sequence(difference(after, before), confidence=confidence, effect=effect)


def _shared(confidence: float, among: int) -> float:
    return 1 - (1 - confidence) / among


def _effect(limit: float) -> float:
    return max(limit, FINEST_EFFECT)


def _check(
    name: str, interval: Interval | None, limit: float, samples: int, reason: str, *, passed: bool
) -> GateCheck:
    found = interval or Interval(value=limit, low=limit, high=limit)
    return GateCheck(
        name=name,
        passed=passed,
        value=found.value,
        low=found.low,
        high=found.high,
        limit=limit,
        samples=samples,
        reason=reason,
    )


def _rise(logarithm: float) -> float:
    return math.expm1(min(logarithm, LARGEST_LOGARITHM))


def _spelt(interval: Interval, shown: Callable[[float], str]) -> str:
    low = shown(interval.low).removesuffix(POINTS)
    return f"{shown(interval.value)} ({low} to {shown(interval.high)})"


def _points(share: float) -> str:
    return f"{100 * share:+.1f}{POINTS}"


def _percent(rise: float) -> str:
    return f"{rise:+.0%}"


def _share(moments: Moments) -> str:
    return "no data" if moments.mean is None else f"{moments.mean:.1%}"


def _milliseconds(logs: Moments) -> str:
    return "no data" if logs.mean is None else f"{math.exp(logs.mean):.1f} ms"
