"""Rounds that stand still, end in the middle, or forget."""

from __future__ import annotations

from observability.alerts.model import Alert, Case, Fired, given
from observability.alerts.shared import REACHED, TRAINER, gone, seen
from observability.instruments import MODEL
from observability.promql import increase, level, select, unless, where_value

MAX_FORGETTING = 0.02
"""Twice what a gate lets by, unless ``trainer.max_forgetting`` says otherwise."""
_ROUNDS = select("feedloom.trainer.rounds.open")


def _open(values: str) -> tuple[str, str]:
    return given("feedloom.trainer.rounds.open", TRAINER, values)


def _steps(values: str) -> tuple[str, str]:
    return given("feedloom.trainer.steps", TRAINER, values)


ALERTS: tuple[Alert, ...] = (
    Alert(
        name="FeedloomTrainingStalled",
        runbook="training-stalled",
        query=unless(
            where_value(level(_ROUNDS, by=(MODEL,), how="max"), ">", 0),
            where_value(
                increase(select("feedloom.trainer.steps"), by=(MODEL,), window="5m"), ">", 0
            ),
        ),
        # Not a window of half an hour: a trainer that has just started has no history.
        lasting="30m",
        severity="ticket",
        summary="A training round is open and makes no steps",
        description="The round of {{ $labels.feedloom_model }} has made no step for half an hour.",
        cases=(
            Case(
                name="no steps",
                given=[_open("1x60"), _steps("0+10x10 100x50")],
                at="50m",
                fires=[
                    Fired(
                        labels={MODEL: "default"},
                        says="The round of default has made no step for half an hour.",
                    )
                ],
            ),
            Case(name="steps", given=[_open("1x60"), _steps("0+10x60")], at="50m"),
            Case(
                name="a round that has just begun",
                given=[_open("0x40 1x20"), _steps("100x60")],
                at="50m",
            ),
            Case(
                name="a trainer that has just started",
                given=[_open("_x40 1x20"), _steps("_x40 0x5 1+1x20")],
                at="45m",
            ),
        ),
    ),
    Alert(
        name="FeedloomTrainerLost",
        runbook="trainer-lost",
        query=seen(where_value(gone((MODEL,), "feedloom.trainer.rounds.open"), ">", 0)),
        severity="ticket",
        summary="A trainer went away in the middle of a round",
        description="The trainer of {{ $labels.feedloom_model }} no longer reports, and its "
        "round had not ended.",
        lasting="2m",
        cases=(
            Case(
                name="killed",
                given=[REACHED, _open("1x5 stale")],
                at="10m",
                fires=[
                    Fired(
                        labels={MODEL: "default"},
                        says="The trainer of default no longer reports, and its round had not "
                        "ended.",
                    )
                ],
            ),
            Case(name="stopped after its round", given=[REACHED, _open("1x5 0x2 stale")], at="10m"),
            Case(name="it runs on", given=[REACHED, _open("1x30")], at="10m"),
        ),
    ),
    Alert(
        name="FeedloomForgetting",
        runbook="forgetting",
        query=where_value(
            level(select("feedloom.trainer.forgetting"), by=(MODEL,), how="max"),
            ">",
            MAX_FORGETTING,
        ),
        severity="ticket",
        summary="A training round forgot what its parent knew",
        description="The held-out loss of {{ $labels.feedloom_model }} rose by "
        "{{ $value | humanizePercentage }} in its last round.",
        cases=(
            Case(
                name="a tenth",
                given=[given("feedloom.trainer.forgetting", TRAINER, "0x5 0.1x10")],
                at="10m",
                fires=[
                    Fired(
                        labels={MODEL: "default"},
                        says="The held-out loss of default rose by 10% in its last round.",
                    )
                ],
            ),
            Case(
                name="it got better",
                given=[given("feedloom.trainer.forgetting", TRAINER, "-0.1x10")],
                at="10m",
            ),
        ),
    ),
)
