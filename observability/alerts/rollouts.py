"""Candidates that fail, and those that were withdrawn."""

from __future__ import annotations

from observability.alerts.model import Alert, Case, Fired, given
from observability.alerts.shared import GATEWAY
from observability.instruments import ACTED, ARM, MODEL, VERDICT, VERSION
from observability.promql import (
    Query,
    both,
    equal,
    grown,
    level,
    minus,
    ratio,
    select,
    unless,
    where_above,
    where_value,
)

LEAST_CANARY_REQUESTS = 20


def _arm(name: str, arm: str, values: str) -> tuple[str, str]:
    attributes = {
        **GATEWAY,
        MODEL: "default",
        VERSION: "2" if arm == "candidate" else "1",
        ARM: arm,
    }
    return given(f"feedloom.rollout.{name}", attributes, values)


def _of_arm(name: str, arm: str, by: tuple[str, ...], ago: str = "") -> Query:
    series = select(f"feedloom.rollout.{name}", {ARM: equal(arm)})
    return level(series, by=by, how="max", ago=ago)


def _decisions(verdict: str, acted: str, values: str) -> tuple[str, str]:
    attributes = {
        "job": "feedloom-rollouts",
        "instance": "r1",
        MODEL: "default",
        VERDICT: verdict,
        ACTED: acted,
    }
    return given("feedloom.rollout.decisions", attributes, values)


_BY_VERSION = (MODEL, VERSION)
_CANDIDATES = _of_arm("requests", "candidate", _BY_VERSION)
# A canary that nobody asks: its count stands still.
_OVER = where_value(
    minus(_CANDIDATES, _of_arm("requests", "candidate", _BY_VERSION, "15m")), "==", 0
)

ALERTS: tuple[Alert, ...] = (
    Alert(
        name="FeedloomCandidateErrors",
        runbook="candidate-errors",
        query=unless(
            both(
                where_above(
                    ratio(_of_arm("errors", "candidate", _BY_VERSION), _CANDIDATES),
                    ratio(
                        _of_arm("errors", "stable", (MODEL,)),
                        _of_arm("requests", "stable", (MODEL,)),
                    ),
                    times=2,
                    plus=0.02,
                    on=(MODEL,),
                ),
                where_value(_CANDIDATES, ">=", LEAST_CANARY_REQUESTS),
            ),
            _OVER,
        ),
        severity="page",
        summary="A canary's candidate fails requests that the stable version answers",
        description="{{ $value | humanizePercentage }} of the requests that candidate "
        "{{ $labels.feedloom_version }} of {{ $labels.feedloom_model }} was given failed: more "
        "than twice the stable version's share.",
        lasting="1m",
        cases=(
            Case(
                name="a bad candidate",
                given=[
                    _arm("requests", "candidate", "40x10"),
                    _arm("errors", "candidate", "10x10"),
                    _arm("requests", "stable", "400x10"),
                    _arm("errors", "stable", "0x10"),
                ],
                at="5m",
                fires=[
                    Fired(
                        labels={MODEL: "default", VERSION: "2"},
                        says="25% of the requests that candidate 2 of default was given failed: "
                        "more than twice the stable version's share.",
                    )
                ],
            ),
            Case(
                name="a canary that is over",
                given=[
                    _arm("requests", "candidate", "40x40"),
                    _arm("errors", "candidate", "10x40"),
                    _arm("requests", "stable", "400x40"),
                    _arm("errors", "stable", "0x40"),
                ],
                at="30m",
            ),
            Case(
                name="both fail alike",
                given=[
                    _arm("requests", "candidate", "40x10"),
                    _arm("errors", "candidate", "10x10"),
                    _arm("requests", "stable", "400x10"),
                    _arm("errors", "stable", "100x10"),
                ],
                at="5m",
            ),
            Case(
                name="too few to tell",
                given=[
                    _arm("requests", "candidate", "4x10"),
                    _arm("errors", "candidate", "1x10"),
                    _arm("requests", "stable", "400x10"),
                    _arm("errors", "stable", "0x10"),
                ],
                at="5m",
            ),
        ),
    ),
    Alert(
        name="FeedloomCandidateWithdrawn",
        runbook="candidate-withdrawn",
        query=grown(
            select(
                "feedloom.rollout.decisions", {VERDICT: equal("rollback"), ACTED: equal("true")}
            ),
            by=(MODEL,),
            window="1h",
        ),
        severity="ticket",
        summary="A candidate was withdrawn by the rollout controller",
        description="The canary of {{ $labels.feedloom_model }} did worse than its stable version, "
        "and everybody is answered by that again.",
        cases=(
            Case(
                name="one was",
                given=[_decisions("rollback", "true", "_x10 1x20")],
                at="15m",
                fires=[
                    Fired(
                        labels={MODEL: "default"},
                        says="The canary of default did worse than its stable version, and "
                        "everybody is answered by that again.",
                    )
                ],
            ),
            Case(
                name="one would have been, and none was",
                given=[
                    _decisions("rollback", "false", "_x10 1x20"),
                    _decisions("promote", "true", "_x10 1x20"),
                    _decisions("hold", "false", "_x10 1+1x20"),
                ],
                at="15m",
            ),
        ),
    ),
)
