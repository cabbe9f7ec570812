"""OffsetTracker: whatever ends, moves or crashes, nothing unfinished is ever committed past."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from stream_workers.offsets import (
    METADATA_LIMIT,
    WINDOW,
    OffsetTracker,
    Position,
    decode_position,
    encode_metadata,
)


class Partition(RuleBasedStateMachine):
    """A partition with gaps, its owner, and what the broker stores. A crash forgets the owner."""

    @initialize(gaps=st.lists(st.integers(1, 4), min_size=1, max_size=40), first=st.integers(0, 9))
    def records(self, gaps: list[int], first: int) -> None:
        self.log = [first]
        for gap in gaps:
            self.log.append(self.log[-1] + gap)
        self.stored: tuple[int, str] | None = None
        self.results: list[int] = []
        self._own()

    def _own(self) -> None:
        position = None if self.stored is None else decode_position(*self.stored)
        self.tracker = OffsetTracker(position)
        base = self.log[0] if position is None else position.base
        self.unread = [offset for offset in self.log if offset >= base]
        self.running: list[int] = []
        self.uncommitted: list[int] = []

    @precondition(lambda self: self.unread)
    @rule(count=st.integers(1, 6))
    def fetch(self, count: int) -> None:
        for offset in self.unread[:count]:
            if self.tracker.deliver(offset, started_ms=offset):
                assert offset not in self.results
                self.running.append(offset)
        del self.unread[:count]

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def finish_any(self, data: st.DataObject) -> None:
        offset = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        assert self.tracker.finish(offset)
        self.uncommitted.append(offset)

    @rule()
    def commit(self) -> None:
        """One transaction: the results, and the position that says so."""
        position = self.tracker.position()
        if position is not None:
            self.stored = (position.base, encode_metadata(position))
            self.results += self.uncommitted
            self.uncommitted = []

    @rule()
    def seek_back(self) -> None:
        """Faust may seek to the committed offset at any time: known records come again."""
        base = self.log[0] if self.stored is None else self.stored[0]
        seen = [offset for offset in self.log if offset >= base and offset not in self.unread]
        for offset in seen:
            assert not self.tracker.deliver(offset)

    @rule()
    def crash_or_rebalance(self) -> None:
        self._own()

    @invariant()
    def nothing_is_answered_twice(self) -> None:
        if hasattr(self, "results"):
            assert len(self.results) == len(set(self.results))

    @invariant()
    def the_stored_position_says_exactly_what_is_answered(self) -> None:
        if getattr(self, "stored", None) is not None:
            position = decode_position(*self.stored)  # type: ignore[misc]
            finished = [offset for offset in self.log if position.is_finished(offset)]
            assert sorted(self.results) == finished

    def teardown(self) -> None:
        """Whatever happened before, running it to the end answers everything once."""
        if not hasattr(self, "log"):
            return
        self._own()
        self.fetch(len(self.log))
        for offset in self.running:
            self.tracker.finish(offset)
            self.uncommitted.append(offset)
        self.commit()
        assert sorted(self.results) == self.log
        assert self.stored is not None
        assert self.stored[0] == self.log[-1] + 1


TestPartition = Partition.TestCase
TestPartition.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)

SPANS = st.lists(st.tuples(st.integers(1, 300), st.integers(1, 300)), max_size=30)


@given(st.integers(0, 2**40), SPANS, st.integers(0, 2**45))
def test_metadata_comes_back_as_it_was_stored(
    base: int, lengths: list[tuple[int, int]], since: int
) -> None:
    spans, end = [], base
    for skipped, length in lengths:
        spans.append((end + skipped, end + skipped + length))
        end = spans[-1][1]
    position = Position(base, tuple(spans), since)
    assert decode_position(base, encode_metadata(position)) == position


def test_the_largest_window_fits_into_what_a_broker_takes() -> None:
    tracker = OffsetTracker()
    for offset in range(WINDOW):
        tracker.deliver(offset, 2**42)
    for offset in range(1, WINDOW, 2):
        tracker.finish(offset)
    position = tracker.position()
    assert position is not None
    assert len(position.finished) == WINDOW // 2
    assert len(encode_metadata(position)) <= METADATA_LIMIT


@pytest.mark.parametrize("metadata", ["", "{", "null", '{"finished": "?"}', '{"finished": "gA=="}'])
def test_metadata_of_another_writer_counts_as_none(metadata: str) -> None:
    assert decode_position(7, metadata) == Position(7)


def test_a_gap_after_the_stored_offset_stalls_nothing() -> None:
    """robinhood/faust 401, 458: the record at the committed offset was compacted away."""
    tracker = OffsetTracker(Position(10))
    assert tracker.deliver(15)
    assert tracker.finish(15)
    assert tracker.base == 16


def test_the_oldest_unfinished_tells_since_when() -> None:
    tracker = OffsetTracker()
    tracker.deliver(0, 100)
    tracker.deliver(1, 200)
    assert tracker.oldest_ms == 100
    tracker.finish(0)
    assert tracker.position(300) == Position(1, (), 200)
    tracker.finish(1)
    assert tracker.position(300) == Position(2, (), 300)
