"""The collector: down, or losing what it is sent."""

from __future__ import annotations

from functools import reduce

from observability import collector
from observability.alerts.model import Alert, Case, Fired, given
from observability.alerts.shared import COLLECTOR, COLLECTOR_DOWN, LOST, REACHED
from observability.promql import either, grown, select

_LOSSES = reduce(
    either,
    (
        grown(select(source), by=("job",), window="5m")
        for source in (*collector.REFUSED.values(), *collector.SEND_FAILED.values())
    ),
)


def _refused(values: str) -> tuple[str, str]:
    return given(collector.REFUSED["spans"], {**COLLECTOR, "receiver": "otlp"}, values)


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
                given=[LOST],
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
        query=_LOSSES,
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
