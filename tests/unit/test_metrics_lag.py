"""Lag and stalls of partitions: what operators see, and when it goes away."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from infra.contracts.bus import TopicPartition
from stream_workers.lag import PartitionLag

ONE, TWO = TopicPartition("t", 0), TopicPartition("t", 1)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def by_partition(read: Iterable[tuple[float, Mapping[str, str]]]) -> dict[str, float]:
    return {attributes["messaging.destination.partition.id"]: value for value, attributes in read}


def test_lag_is_what_is_not_committed_of_partitions_whose_end_is_known() -> None:
    lag = PartitionLag(Clock())
    lag.assigned({ONE: 10, TWO: 5})
    assert by_partition(lag.lags()) == {}
    lag.ended({ONE: 25})
    assert by_partition(lag.lags()) == {"0": 15}
    lag.committed({ONE: 20, TWO: 6})
    lag.ended({TWO: 6})
    assert by_partition(lag.lags()) == {"0": 5, "1": 0}
    # Committed since the end was asked for.
    lag.committed({TWO: 9})
    assert by_partition(lag.lags()) == {"0": 5, "1": 0}


def test_a_stall_lasts_from_the_first_record_or_the_last_commit() -> None:
    clock = Clock()
    lag = PartitionLag(clock)
    lag.assigned({ONE: 10})
    lag.ended({ONE: 10})
    clock.now += 3600
    # Idle for an hour is no stall.
    assert by_partition(lag.stalls()) == {"0": 0}
    lag.ended({ONE: 12})
    clock.now += 20
    lag.ended({ONE: 15})
    assert by_partition(lag.stalls()) == {"0": 20}
    lag.committed({ONE: 10})
    assert by_partition(lag.stalls()) == {"0": 20}
    lag.committed({ONE: 11})
    clock.now += 5
    assert by_partition(lag.stalls()) == {"0": 5}
    lag.committed({ONE: 15})
    assert by_partition(lag.stalls()) == {"0": 0}


def test_nothing_is_left_of_partitions_that_went_away() -> None:
    lag = PartitionLag(Clock())
    lag.assigned({ONE: 0, TWO: 0})
    lag.ended({ONE: 1, TWO: 1})
    lag.revoked()
    assert by_partition(lag.lags()) == by_partition(lag.stalls()) == {}
    lag.assigned({TWO: 1})
    lag.ended({ONE: 9, TWO: 4})
    lag.committed({ONE: 9})
    assert by_partition(lag.lags()) == {"1": 3}
    assert lag.partitions == [TWO]
