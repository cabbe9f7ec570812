"""What the feedback join's table keeps, and for how long."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import faust
import pytest
from faust.types import TP
from hypothesis import given
from hypothesis import strategies as st

from infra.contracts.events.feedback import FeedbackForgotten, FeedbackReceived
from stream_workers.feedback import JoinState, expire, join
from stream_workers.join_table import JoinTable, Window, changelog_config

WINDOW_S = 100.0

WRITES = st.lists(
    st.tuples(
        st.sampled_from([b"a", b"b", b"c", b"d"]),
        st.floats(0, 1_000, allow_nan=False),
        st.integers(0, 2),
    )
)


class Clock:
    """Says what it is told."""

    def __init__(self) -> None:
        self.now = 10_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def both(earlier: bytes, later: bytes) -> bytes:
    return bytes(sorted({*earlier, *later}))


@pytest.fixture
def table(clock: Clock) -> Any:
    app = faust.App("test", Table=JoinTable)
    return app.Table(
        "join", key_type=bytes, value_type=bytes, window_s=WINDOW_S, clock=clock, merge=both
    )


def change(key: str, value: bytes, at: float, partition: int = 0) -> Any:
    """As it comes from the changelog."""
    message = SimpleNamespace(value=value, timestamp=at, partition=partition)
    return SimpleNamespace(key=key.encode(), value=value, message=message)


@given(WRITES, st.floats(0, 1_000, allow_nan=False))
def test_what_expires_is_what_was_last_written_before(
    writes: list[tuple[bytes, float, int]], before: float
) -> None:
    window = Window()
    for write in writes:
        window.touch(*write)
    window.sort()
    last = {key: at for key, at, _ in writes}
    found = window.expired(before, most=10)
    assert set(found) == {key for key, at in last.items() if at < before}
    assert [last[key] for key in found] == sorted(last[key] for key in found)
    assert len(window) == len(last) - len(found)


@given(WRITES, st.integers(0, 3))
def test_no_more_expires_at_once_than_is_asked_for(
    writes: list[tuple[bytes, float, int]], most: int
) -> None:
    window = Window()
    for write in writes:
        window.touch(*write)
    window.sort()
    found: list[bytes] = []
    while taken := window.expired(2_000, most):
        assert len(taken) <= most
        found += taken
        assert most
    assert len(found) == (len({key for key, _, _ in writes}) if most else 0)


@given(WRITES, st.sets(st.integers(0, 2)))
def test_a_key_is_where_it_was_written_last(
    writes: list[tuple[bytes, float, int]], partitions: set[int]
) -> None:
    window = Window()
    for write in writes:
        window.touch(*write)
    last = {key: partition for key, _, partition in writes}
    outside = {key for key, partition in last.items() if partition not in partitions}
    assert set(window.outside(partitions)) == outside


async def test_a_worker_that_starts_takes_in_what_is_not_too_old(table: Any, clock: Clock) -> None:
    now = clock.now
    table.apply_changelog_batch(
        [
            change("old", b"1", now - WINDOW_S - 1),
            change("touched again", b"1", now - WINDOW_S - 1),
            change("touched again", b"2", now - 50),
            # The last one written is not the whole.
            change("written late", b"12", now - 20),
            change("written late", b"1", now - 19),
            change("elsewhere", b"1", now - 10, partition=3),
            change("young", b"1", now - 60, partition=1),
        ]
    )
    await table.on_recovery_completed({TP("log", 0), TP("log", 1)}, set())
    assert dict(table.data) == {
        b"touched again": b"2",
        b"written late": b"12",
        b"young": b"1",
    }
    clock.now += 45
    # Read after the other, written before it.
    assert table.sweep(10) == [b"1"]
    clock.now += 10
    assert table.sweep(10) == [b"2"]
    clock.now += 30
    assert table.sweep(10) == [b"12"]
    assert not table.data
    assert not table.data.window


async def test_partitions_that_moved_away_leave_nothing(table: Any, clock: Clock) -> None:
    for partition in range(3):
        key = f"{partition}"
        table.apply_changelog_batch([change(key, b"x", clock.now, partition)])
    await table.on_recovery_completed({TP("log", 0)}, {TP("log", 1)})
    assert set(table.data) == {b"0", b"1"}
    await table.on_recovery_completed(set(), {TP("log", 1)})
    assert set(table.data) == {b"1"}


def test_a_clone_keeps_as_long(table: Any) -> None:
    assert table.clone().window_s == WINDOW_S


def test_the_changelog_is_cut_so_that_whole_pieces_can_go() -> None:
    week = changelog_config(7 * 86_400)
    assert week == {
        "cleanup.policy": "delete",
        "retention.ms": "604800000",
        "segment.ms": str(7 * 3_600_000),
    }
    assert changelog_config(10)["segment.ms"] == "60000"


def test_feedback_that_never_met_its_answer_is_counted_when_it_goes() -> None:
    state = JoinState()
    for number in range(2):
        word = FeedbackReceived(
            feedback_id=str(number), request_id="r", created_at_ms=number, rating="up"
        )
        state, _ = join(state, word)
    assert expire(state) == 2
    assert expire(JoinState()) == 0
    forgotten, _ = join(state, FeedbackForgotten(request_id="r", forgotten_at_ms=3))
    assert expire(forgotten) == 0
