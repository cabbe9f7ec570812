"""The collector: down, or losing what it is sent."""

from __future__ import annotations

from observability import collector
from observability.alerts.model import Alert, Case, Fired, given
from observability.alerts.shared import COLLECTOR_DOWN, REACHED
from observability.promql import Query, either, grown, select


def _lost() -> Query:
    found: Query | None = None
    for source in (*collector.REFUSED.values(), *collector.SEND_FAILED.values()):
        this = grown(select(source), by=("job",), window="5m")
        found = this if found is None else either(found, this)
    assert found is not None
    return found


def _refused(values: str) -> tuple[str, str]:
    return given(
        collector.REFUSED["spans"],
        {"job": collector.COLLECTOR_JOB, "instance": "c:8888", "receiver": "otlp"},
        values,
    )


ALERTS: tuple[Alert, ...] = (
    Alert(
        name="FeedloomCollectorDown",
        runbook="collector-down",
        query=COLLECTOR_DOWN,
        severity="page",
        summary="The collector is down: dashboards and most alerts are blind",
        description="Prometheus cannot reach {{ $labels.job }}. The platform goes on; what it "
        "reports is lost.",
        lasting="1m",
        cases=(
            Case(
                name="down",
                given=[
                    given(
                        collector.UP,
                        {"job": collector.COLLECTOR_JOB, "instance": "c:8888"},
                        "1x5 0x10",
                    )
                ],
                at="8m",
                fires=[
                    Fired(
                        labels={"job": collector.COLLECTOR_JOB},
                        says="Prometheus cannot reach otel-collector. The platform goes on; what "
                        "it reports is lost.",
                    )
                ],
            ),
            Case(name="up", given=[REACHED], at="8m"),
        ),
    ),
    Alert(
        name="FeedloomCollectorDropping",
        runbook="collector-dropping",
        query=_lost(),
        severity="ticket",
        summary="The collector refuses or loses telemetry",
        description="{{ $labels.job }} has refused or lost spans or metric points for five "
        "minutes.",
        lasting="5m",
        cases=(
            Case(
                name="refused at the door",
                given=[_refused("0x5 0+100x20")],
                at="15m",
                fires=[
                    Fired(
                        labels={"job": collector.COLLECTOR_JOB},
                        says="otel-collector has refused or lost spans or metric points for five "
                        "minutes.",
                    )
                ],
            ),
            Case(name="a blip", given=[_refused("0x5 100x20")], at="15m"),
        ),
    ),
)
