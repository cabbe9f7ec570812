"""Workers that are gone, dead, or cannot switch."""

from __future__ import annotations

from observability.alerts.model import Alert, Case, Fired, given
from observability.alerts.shared import LOST, REACHED, WORKER, gone, seen
from observability.instruments import ERROR_TYPE, MODEL_KIND, OUTCOME
from observability.promql import either, equal, grown, level, like, missing, select, where_value

_ALIVE = select("feedloom.engine.alive")


def _alive(values: str, instance: str = "w1") -> tuple[str, str]:
    return given("feedloom.engine.alive", {**WORKER, "instance": instance}, values)


def _failures(error: str, values: str) -> tuple[str, str]:
    return given("feedloom.worker.failures", {**WORKER, ERROR_TYPE: error}, values)


def _switches(outcome: str, values: str) -> tuple[str, str]:
    attributes = {**WORKER, MODEL_KIND: "full", OUTCOME: outcome}
    return given("feedloom.worker.switches", attributes, values)


_W1_DEAD = Fired(
    labels={"instance": "w1"},
    says="The engine of w1 has died; its worker ends, and another goes on with its requests.",
)

ALERTS: tuple[Alert, ...] = (
    Alert(
        name="FeedloomEngineDead",
        runbook="engine-dead",
        # A worker ends when its engine does. Mostly it counts that as it ends, and nothing later;
        # one whose end takes longer also says that its engine is dead.
        query=either(
            grown(
                select("feedloom.worker.failures", {ERROR_TYPE: equal("EngineDead")}),
                by=("instance",),
                window="5m",
            ),
            where_value(
                level(_ALIVE, by=("instance",), how="min", over="min", window="2m"), "==", 0
            ),
        ),
        severity="page",
        summary="A worker's engine has died",
        description="The engine of {{ $labels.instance }} has died; its worker ends, and another "
        "goes on with its requests.",
        cases=(
            Case(
                name="one of two",
                given=[_alive("1x5 0 stale"), _alive("1x15", "w2")],
                at="7m",
                fires=[_W1_DEAD],
            ),
            Case(
                name="it ended at once",
                given=[
                    _alive("1x5 stale"),
                    _failures("EngineDead", "_x5 1x8 stale"),
                    _alive("1x15", "w2"),
                ],
                at="8m",
                fires=[_W1_DEAD],
            ),
            Case(
                name="something else ended it",
                given=[_alive("1x5 stale"), _failures("CommitsFail", "_x5 1x8 stale")],
                at="8m",
            ),
            Case(name="both live", given=[_alive("1x15"), _alive("1x15", "w2")], at="8m"),
        ),
    ),
    Alert(
        name="FeedloomNoWorker",
        runbook="no-worker",
        query=seen(missing(_ALIVE)),
        severity="page",
        summary="No worker reports",
        description="No worker has reported for two minutes: requests wait in Kafka, and "
        "gateways answer 503.",
        lasting="2m",
        cases=(
            Case(
                name="the last one went",
                given=[REACHED, _alive("1x5 stale")],
                at="10m",
                fires=[
                    Fired(
                        says="No worker has reported for two minutes: requests wait in Kafka, "
                        "and gateways answer 503."
                    )
                ],
            ),
            Case(
                name="nobody reports anything",
                given=[LOST, _alive("1x5 stale")],
                at="10m",
            ),
            Case(name="one reports", given=[REACHED, _alive("1x15")], at="10m"),
        ),
    ),
    Alert(
        name="FeedloomWorkerLost",
        runbook="worker-lost",
        query=seen(gone(("instance",), "feedloom.engine.alive")),
        severity="ticket",
        summary="A worker no longer reports",
        description="{{ $labels.instance }} reported a quarter of an hour ago at most, and no "
        "longer does: it was stopped, or it died.",
        lasting="2m",
        cases=(
            Case(
                name="one of two went",
                given=[REACHED, _alive("1x5 stale"), _alive("1x30", "w2")],
                at="10m",
                fires=[
                    Fired(
                        labels={"instance": "w1"},
                        says="w1 reported a quarter of an hour ago at most, and no longer does: "
                        "it was stopped, or it died.",
                    )
                ],
            ),
            Case(
                name="it came back",
                given=[REACHED, _alive("1x5 stale _x2 1x20")],
                at="12m",
            ),
            Case(
                name="it went long ago",
                given=[REACHED, _alive("1x5 stale"), _alive("1x60", "w2")],
                at="40m",
            ),
        ),
    ),
    Alert(
        name="FeedloomSwitchFailing",
        runbook="switch-failing",
        query=grown(
            select("feedloom.worker.switches", {OUTCOME: like("failed|refused")}),
            by=("instance", MODEL_KIND, OUTCOME),
            window="15m",
        ),
        severity="ticket",
        summary="A worker could not switch to a version",
        description="{{ $labels.instance }} {{ $labels.feedloom_outcome }} a version "
        "({{ $labels.feedloom_model_kind }}) and keeps the one that it has.",
        cases=(
            Case(
                name="a bad artifact",
                given=[_switches("loaded", "1x20"), _switches("refused", "_x8 1x12")],
                at="10m",
                fires=[
                    Fired(
                        labels={
                            "instance": "w1",
                            MODEL_KIND: "full",
                            OUTCOME: "refused",
                        },
                        says="w1 refused a version (full) and keeps the one that it has.",
                    )
                ],
            ),
            Case(name="a good one", given=[_switches("loaded", "_x8 1x12")], at="10m"),
        ),
    ),
)
