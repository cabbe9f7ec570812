"""Kafka that does not answer, records that wait, commits and rebalances."""

from __future__ import annotations

from observability.alerts.model import Alert, Case, Fired, given
from observability.alerts.shared import GATEWAY, WORKER
from observability.instruments import (
    DESTINATION,
    ERROR_TYPE,
    MESSAGING_OPERATION,
    OUTCOME,
    PARTITION,
)
from observability.promql import (
    both,
    either,
    equal,
    grown,
    increase,
    level,
    like,
    present,
    rate,
    ratio,
    select,
    unlike,
    where_above,
    where_value,
)

LAG_RECORDS = 100
STALL_S = 120
BATCH_STALL_S = 1800
"""Batch requests wait, as they should, while interactive ones need the worker."""
REBALANCES = 10
_BATCH = ".*generation\\\\.requests\\\\.batch"


def _lag(values: str, partition: str = "0") -> tuple[str, str]:
    attributes = {**WORKER, DESTINATION: "generation.requests", PARTITION: partition}
    return given("feedloom.worker.lag", attributes, values)


def _stall(topic: str, values: str) -> tuple[str, str]:
    attributes = {**WORKER, DESTINATION: topic, PARTITION: "3"}
    return given("feedloom.worker.partition.stalled", attributes, values)


_LAG = level(select("feedloom.worker.lag"), by=(DESTINATION,))
_STALLED = select("feedloom.worker.partition.stalled")
_OPERATIONS = select("messaging.client.operation.duration")
_COMMITS = select("feedloom.worker.commit.duration")


def _operations(error: str, values: str, operation: str = "send") -> tuple[str, str]:
    attributes = {**WORKER, MESSAGING_OPERATION: operation} | ({ERROR_TYPE: error} if error else {})
    return given("messaging.client.operation.duration", attributes, values, "count")


def _commits(error: str, values: str) -> tuple[str, str]:
    attributes = {**WORKER} | ({ERROR_TYPE: error} if error else {})
    return given("feedloom.worker.commit.duration", attributes, values, "count")


ALERTS: tuple[Alert, ...] = (
    Alert(
        name="FeedloomKafkaUnreachable",
        runbook="kafka-unreachable",
        query=either(
            where_value(
                ratio(
                    rate(_OPERATIONS.where({ERROR_TYPE: present()}), by=("job",), window="5m"),
                    rate(_OPERATIONS, by=("job",), window="5m"),
                ),
                ">",
                0.5,
            ),
            grown(
                select("feedloom.gateway.admissions", {OUTCOME: equal("broker_gone")}),
                by=("job",),
                window="5m",
            ),
        ),
        severity="page",
        summary="Kafka does not answer",
        description="Most sends, polls and commits of {{ $labels.job }} fail, or it answers "
        "callers that Kafka is gone.",
        lasting="1m",
        cases=(
            Case(
                name="sends fail",
                given=[_operations("", "0+10x10 100x10"), _operations("timeout", "0x10 0+5x10")],
                at="19m",
                fires=[
                    Fired(
                        labels={"job": "feedloom-worker"},
                        says="Most sends, polls and commits of feedloom-worker fail, or it "
                        "answers callers that Kafka is gone.",
                    )
                ],
            ),
            Case(
                name="a gateway has lost it",
                given=[
                    given(
                        "feedloom.gateway.admissions",
                        {**GATEWAY, OUTCOME: "broker_gone"},
                        "_x10 1x2 3x10",
                    )
                ],
                at="14m",
                fires=[
                    Fired(
                        labels={"job": "feedloom-gateway"},
                        says="Most sends, polls and commits of feedloom-gateway fail, or it "
                        "answers callers that Kafka is gone.",
                    )
                ],
            ),
            Case(
                name="one in ten fails",
                given=[_operations("", "0+9x20"), _operations("timeout", "0+1x20")],
                at="19m",
            ),
        ),
    ),
    Alert(
        name="FeedloomLagGrowing",
        runbook="lag-growing",
        query=both(
            where_value(_LAG, ">", LAG_RECORDS),
            where_above(
                _LAG,
                level(select("feedloom.worker.lag"), by=(DESTINATION,), ago="10m"),
                times=1.2,
            ),
        ),
        severity="ticket",
        summary="Requests come in faster than workers answer them",
        description="{{ $value }} records of {{ $labels.messaging_destination_name }} wait, a "
        "fifth more than ten minutes ago.",
        lasting="5m",
        cases=(
            Case(
                name="it grows",
                given=[_lag("0+10x40"), _lag("0+10x40", "1")],
                at="30m",
                fires=[
                    Fired(
                        labels={DESTINATION: "generation.requests"},
                        says="600 records of generation.requests wait, a fifth more than ten "
                        "minutes ago.",
                    )
                ],
            ),
            Case(name="it is high and shrinks", given=[_lag("900-10x40")], at="30m"),
            Case(name="it is low and grows", given=[_lag("0+2x40")], at="30m"),
        ),
    ),
    Alert(
        name="FeedloomPartitionStalled",
        runbook="partition-stalled",
        query=either(
            where_value(
                level(
                    _STALLED.where({DESTINATION: unlike(_BATCH)}),
                    by=(DESTINATION, PARTITION),
                    how="max",
                ),
                ">",
                STALL_S,
            ),
            where_value(
                level(
                    _STALLED.where({DESTINATION: like(_BATCH)}),
                    by=(DESTINATION, PARTITION),
                    how="max",
                ),
                ">",
                BATCH_STALL_S,
            ),
        ),
        severity="page",
        summary="A partition with waiting records stands still",
        description="Partition {{ $labels.messaging_destination_partition_id }} of "
        "{{ $labels.messaging_destination_name }} has records and has not moved for "
        "{{ $value | humanizeDuration }}.",
        lasting="1m",
        cases=(
            Case(
                name="requests",
                given=[_stall("generation.requests", "0 0+60x10")],
                at="6m",
                fires=[
                    Fired(
                        labels={DESTINATION: "generation.requests", PARTITION: "3"},
                        says="Partition 3 of generation.requests has records and has not moved "
                        "for 5m 0s.",
                    )
                ],
            ),
            Case(
                name="batch requests that wait for slack",
                given=[_stall("generation.requests.batch", "0 0+60x10")],
                at="6m",
            ),
            Case(
                name="batch requests that wait for an hour",
                given=[_stall("generation.requests.batch", "0 0+60x70")],
                at="61m",
                fires=[
                    Fired(
                        labels={DESTINATION: "generation.requests.batch", PARTITION: "3"},
                        says="Partition 3 of generation.requests.batch has records and has not "
                        "moved for 1h 0m 0s.",
                    )
                ],
            ),
            Case(name="it moves", given=[_stall("generation.requests", "40x10")], at="6m"),
        ),
    ),
    Alert(
        name="FeedloomDeadLetters",
        runbook="dead-letters",
        query=grown(select("feedloom.dead_letters"), by=(DESTINATION, ERROR_TYPE), window="15m"),
        severity="ticket",
        summary="Records were put on a dead-letter topic",
        description='{{ printf "%.0f" $value }} records of '
        "{{ $labels.messaging_destination_name }} became dead letters in 15 minutes "
        "({{ $labels.error_type }}).",
        cases=(
            Case(
                name="the first one",
                given=[
                    given(
                        "feedloom.dead_letters",
                        {**WORKER, DESTINATION: "feedback.events", ERROR_TYPE: "DecodeError"},
                        "_x10 1x20",
                    )
                ],
                at="15m",
                fires=[
                    Fired(
                        labels={DESTINATION: "feedback.events", ERROR_TYPE: "DecodeError"},
                        says="1 records of feedback.events became dead letters in 15 minutes "
                        "(DecodeError).",
                    )
                ],
            ),
            Case(
                name="an old one",
                given=[
                    given(
                        "feedloom.dead_letters",
                        {**WORKER, DESTINATION: "feedback.events", ERROR_TYPE: "DecodeError"},
                        "_x10 1x60",
                    )
                ],
                at="40m",
            ),
        ),
    ),
    Alert(
        name="FeedloomCommitsFailing",
        runbook="commits-failing",
        # A rebalance takes a commit's partitions away: that is FeedloomRebalanceStorm's matter.
        query=grown(
            _COMMITS.where({ERROR_TYPE: unlike("OwnershipLost|")}),
            by=("instance", ERROR_TYPE),
            window="5m",
        ),
        severity="page",
        summary="A worker cannot commit results and offsets",
        description="Transactions of {{ $labels.instance }} fail again and again "
        "({{ $labels.error_type }}): nothing that it answers counts.",
        lasting="5m",
        cases=(
            Case(
                name="again and again",
                given=[_commits("", "0+9x10 90x20"), _commits("ProducerFenced", "_x10 1+1x20")],
                at="20m",
                fires=[
                    Fired(
                        labels={"instance": "w1", ERROR_TYPE: "ProducerFenced"},
                        says="Transactions of w1 fail again and again (ProducerFenced): nothing "
                        "that it answers counts.",
                    )
                ],
            ),
            Case(
                name="once",
                given=[_commits("", "0+9x30"), _commits("ProducerFenced", "_x10 1x20")],
                at="17m",
            ),
            Case(
                name="at every rebalance",
                given=[_commits("", "0+9x30"), _commits("OwnershipLost", "_x10 1+1x20")],
                at="20m",
            ),
        ),
    ),
    Alert(
        name="FeedloomRebalanceStorm",
        runbook="rebalance-storm",
        query=where_value(
            increase(select("feedloom.worker.rebalances"), by=("instance",), window="15m"),
            ">",
            REBALANCES,
        ),
        severity="ticket",
        summary="Partitions move between workers all the time",
        description='{{ $labels.instance }} was given or lost partitions {{ printf "%.0f" $value }}'
        " times in 15 minutes.",
        cases=(
            Case(
                name="every minute",
                given=[
                    given("feedloom.worker.rebalances", {**WORKER, OUTCOME: outcome}, "0+1x30")
                    for outcome in ("assigned", "revoked")
                ],
                at="25m",
                fires=[
                    Fired(
                        labels={"instance": "w1"},
                        says="w1 was given or lost partitions 30 times in 15 minutes.",
                    )
                ],
            ),
            Case(
                name="a deployment",
                given=[
                    given(
                        "feedloom.worker.rebalances",
                        {**WORKER, OUTCOME: "assigned"},
                        "0x5 1 2 3x30",
                    )
                ],
                at="12m",
            ),
        ),
    ),
)
