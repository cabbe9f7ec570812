"""Kafka: what waits, what stands still, what fails; and whether telemetry itself arrives."""

from __future__ import annotations

from observability import collector
from observability.alerts.kafka import STALL_S
from observability.dashboards.panels import Dashboard, Row, Scope, graph, stat
from observability.dashboards.variables import TOPIC
from observability.instruments import (
    DESTINATION,
    ERROR_TYPE,
    GROUP,
    MESSAGING_OPERATION,
    OUTCOME,
    PARTITION,
)
from observability.promql import equal, level, present, quantile, rate, ratio, share_where

_on = Scope((TOPIC,))

_LAG = _on("feedloom.worker.lag")
_STALL = _on("feedloom.worker.partition.stalled")
_OPERATIONS = _on("messaging.client.operation.duration")
_LETTERS = _on("feedloom.dead_letters")
_COMMIT = _on("feedloom.worker.commit.duration")
_BY_JOB = ("job", MESSAGING_OPERATION)

DASHBOARD = Dashboard(
    uid="feedloom-kafka",
    title="Feedloom / Kafka",
    description="What waits, what stands still, what fails; and whether telemetry arrives.",
    variables=(TOPIC,),
    rows=(
        Row(
            title="Now",
            height=4,
            panels=(
                stat("Lag", "Records after the committed offsets.", level(_LAG)),
                stat(
                    "Longest stall",
                    "How long the worst partition with lag has not moved.",
                    level(_STALL, how="max"),
                    limit=STALL_S,
                ),
                stat(
                    "Failed operations",
                    "Share of sends, polls and commits that failed.",
                    share_where(_OPERATIONS, {ERROR_TYPE: present()}),
                    limit=0.05,
                ),
                stat(
                    "Dead letters", "Records put on a dead-letter topic, a second.", rate(_LETTERS)
                ),
                stat(
                    "Rebalances",
                    "Times that partitions were given or taken, a second.",
                    rate(_on("feedloom.worker.rebalances")),
                ),
                stat(
                    "Collector",
                    "1 while Prometheus reaches the collector.",
                    level(_on(collector.UP, {"job": equal(collector.COLLECTOR_JOB)}), how="min"),
                    unit="none",
                    limit=1,
                    below=True,
                ),
            ),
        ),
        Row(
            title="Partitions",
            panels=(
                graph(
                    "Lag by topic",
                    "Growing: more comes in than workers answer.",
                    level(_LAG, by=(DESTINATION,)),
                ),
                graph(
                    "Lag by partition",
                    "One that grows alone has a hot key, or is stuck.",
                    level(_LAG, by=(DESTINATION, PARTITION)),
                ),
                graph(
                    "Stalled",
                    "How long a partition with lag has not seen its committed offset move.",
                    level(_STALL, by=(DESTINATION, PARTITION), how="max"),
                    limit=STALL_S,
                ),
                graph(
                    "Rebalances",
                    "Times that partitions were given or taken, a second, by which.",
                    rate(_on("feedloom.worker.rebalances"), by=("instance", OUTCOME)),
                ),
                graph(
                    "Commit p95",
                    "How long a transaction of results and offsets took.",
                    quantile(0.95, _COMMIT, by=("instance",)),
                ),
                graph(
                    "Dead letters",
                    "Records put on a dead-letter topic, a second, by source and kind of error.",
                    rate(_LETTERS, by=(DESTINATION, ERROR_TYPE)),
                ),
            ),
        ),
        Row(
            title="Records",
            panels=(
                graph(
                    "Sent",
                    "Records handed to a producer, a second.",
                    rate(_on("messaging.client.sent.messages"), by=(DESTINATION,)),
                ),
                graph(
                    "Consumed",
                    "Records taken from a consumer, a second.",
                    rate(_on("messaging.client.consumed.messages"), by=(DESTINATION, GROUP)),
                ),
                graph(
                    "Processing p95",
                    "From a record's receipt to what it led to. A dot opens a trace.",
                    quantile(0.95, _on("messaging.process.duration"), by=(DESTINATION,)),
                ),
                graph(
                    "Operation p95",
                    "How long a send, a poll that found something, or a commit took.",
                    quantile(0.95, _OPERATIONS, by=_BY_JOB),
                ),
                graph(
                    "Failed operations by error",
                    "Sends, polls and commits that failed, a second.",
                    rate(_OPERATIONS.where({ERROR_TYPE: present()}), by=(*_BY_JOB, ERROR_TYPE)),
                ),
                graph(
                    "Failed commits",
                    "Transactions that ended with an error, a second.",
                    rate(_COMMIT.where({ERROR_TYPE: present()}), by=("instance", ERROR_TYPE)),
                ),
            ),
        ),
        Row(
            title="Telemetry itself",
            panels=(
                graph(
                    "Received",
                    "Spans and metric points that the collector took, a second.",
                    *((name, rate(_on(one))) for name, one in collector.ACCEPTED.items()),
                    unit="cps",
                ),
                graph(
                    "Refused and lost",
                    "Refused at the door (memory), or given up on after every retry.",
                    *(
                        (f"refused {name}", rate(_on(one)))
                        for name, one in collector.REFUSED.items()
                    ),
                    *(
                        (f"lost {name}", rate(_on(one), by=("exporter",)))
                        for name, one in collector.SEND_FAILED.items()
                    ),
                    unit="cps",
                ),
                graph(
                    "Export queue",
                    "Share in use. Full means that a back end does not keep up, or is gone.",
                    ratio(
                        level(_on(collector.QUEUE_SIZE), by=("exporter",), how="max"),
                        level(_on(collector.QUEUE_CAPACITY), by=("exporter",), how="max"),
                    ),
                    most=1,
                    limit=0.8,
                ),
                graph(
                    "Traces kept",
                    "Decisions of tail sampling a second, by whether the trace was kept.",
                    rate(_on(collector.TRACES_SAMPLED), by=("sampled",)),
                    width=12,
                ),
                graph(
                    "Traces decided too early",
                    "Traces that made room for others before their decision: raise num_traces.",
                    rate(_on(collector.TRACES_EVICTED)),
                    width=12,
                ),
            ),
        ),
    ),
)
