"""What the alerts of several areas share: who reports, and how what is gone is told. Pure."""

from __future__ import annotations

from observability import collector
from observability.alerts.model import given
from observability.instruments import MODEL
from observability.promql import Query, equal, level, select, unless, where_value

WORKER = {"job": "feedloom-worker", "instance": "w1"}
GATEWAY = {"job": "feedloom-gateway", "instance": "g1"}
TRAINER = {"job": "feedloom-trainer", "instance": "t1", MODEL: "default"}
COLLECTOR = {"job": collector.COLLECTOR_JOB, "instance": "c:8888"}
"""Who reports in cases."""
REACHED = given(collector.UP, COLLECTOR, "1x60")
"""The collector is up all the time."""
LOST = given(collector.UP, COLLECTOR, "1x5 0x10")
"""It goes down."""

COLLECTOR_DOWN = where_value(
    level(select(collector.UP, {"job": equal(collector.COLLECTOR_JOB)}), by=("job",), how="min"),
    "==",
    0,
)


def seen(query: Query) -> Query:
    """Not while the collector is down: then everything is missing."""
    return unless(query, COLLECTOR_DOWN, on=())


def gone(by: tuple[str, ...], series: str) -> Query:
    """What was there in the last quarter of an hour, and is no longer."""
    known = level(select(series), by=by, how="max", over="last", window="15m")
    return unless(known, level(select(series), by=by, how="max"))
