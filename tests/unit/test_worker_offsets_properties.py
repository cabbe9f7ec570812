"""OffsetTracker and its positions, beside a model that is nothing but sets."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_workers.offsets import OffsetTracker, Position, decode_position, encode_metadata

LENGTHS = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), max_size=6)
LONG = st.integers(1, 2**20)


def position_of(base: int, lengths: list[tuple[int, int]], since: int = 0) -> Position:
    """Ranges given as how far apart they lie, and how long they are."""
    spans, end = [], base
    for skipped, length in lengths:
        spans.append((end + skipped, end + skipped + length))
        end = spans[-1][1]
    return Position(base, tuple(spans), since)


class Model:
    """What was finished before, what was delivered when, and what of it ended."""

    def __init__(self, restored: Position | None) -> None:
        self.restored = restored
        self.before = (
            set()
            if restored is None
            else {offset for first, after in restored.finished for offset in range(first, after)}
        )
        self.delivered: dict[int, int] = {}
        self.ended: set[int] = set()

    def was_finished(self, offset: int) -> bool:
        return self.restored is not None and (offset < self.restored.base or offset in self.before)

    def done(self, offset: int) -> bool:
        return self.was_finished(offset) or offset in self.ended

    @property
    def open(self) -> list[int]:
        return [offset for offset in self.delivered if not self.done(offset)]

    @property
    def base(self) -> int | None:
        if self.open:
            return self.open[0]
        least = None if self.restored is None else self.restored.base
        if not self.delivered:
            return least
        return max(max(self.delivered) + 1, least or 0)


def check(tracker: OffsetTracker, model: Model) -> None:
    assert tracker.base == model.base
    held = [offset for offset in model.delivered if model.open and offset >= model.open[0]]
    assert tracker.window == len(held)
    assert tracker.unfinished == len(model.open)
    assert tracker.oldest_ms == (model.delivered[model.open[0]] if model.open else None)
    position = tracker.position(77)
    if model.base is None:
        assert position is None
        return
    assert position is not None
    assert position.base == model.base
    assert position.since_ms == min((model.delivered[one] for one in model.open), default=77)
    # Ascending, not empty, and none over another.
    bounds = [bound for span in position.finished for bound in span]
    assert bounds == sorted(bounds)
    assert all(first < after for first, after in position.finished)
    assert all(first >= position.base for first, _ in position.finished)
    last = max(model.delivered, default=None)
    for offset in range(40):
        assert tracker.is_open(offset) == (offset in model.open)
        if offset in model.delivered:
            assert position.is_finished(offset) == model.done(offset)
        elif last is None or offset > last:
            assert position.is_finished(offset) == (offset < position.base or model.done(offset))


@given(
    restored=st.none() | st.builds(position_of, st.integers(0, 6), LENGTHS, st.integers(0, 9)),
    moves=st.lists(
        st.tuples(st.booleans(), st.integers(0, 35), st.integers(0, 1_000)), max_size=40
    ),
)
def test_every_figure_is_that_of_the_sets(
    restored: Position | None, moves: list[tuple[bool, int, int]]
) -> None:
    tracker, model = OffsetTracker(restored), Model(restored)
    check(tracker, model)
    last = -1
    for delivers, offset, moment in moves:
        if delivers:
            # The log goes forwards, with gaps; now and then a record comes again.
            offset = offset if moment % 7 == 0 else last + 1 + offset % 3
            new = offset > last
            assert tracker.deliver(offset, moment) == (new and not model.was_finished(offset))
            if new:
                model.delivered[offset] = moment
                last = offset
        else:
            # Mostly one that runs.
            if model.open and moment % 7:
                offset = model.open[offset % len(model.open)]
            was_open = offset in model.open
            assert tracker.finish(offset) == was_open
            if was_open:
                model.ended.add(offset)
        check(tracker, model)


def test_a_record_has_no_moment_unless_it_is_given_one() -> None:
    tracker = OffsetTracker()
    assert tracker.deliver(3)
    assert tracker.oldest_ms == 0
    assert tracker.position() == Position(3)
    assert tracker.finish(3)
    assert tracker.position() == Position(4)


def test_what_earlier_owners_finished_is_passed_over_as_it_is_delivered() -> None:
    tracker = OffsetTracker(Position(5, ((6, 8), (20, 30)), 9))
    assert tracker.deliver(5, 50)
    assert tracker.finish(5)
    assert not tracker.deliver(6)
    assert tracker.base == 7
    assert tracker.position(1) == Position(7, ((7, 8), (20, 30)), 1)
    assert not tracker.deliver(7)
    assert tracker.deliver(8, 60)
    assert tracker.position(1) == Position(8, ((20, 30),), 60)


@given(st.integers(0, 2**40), LENGTHS, st.integers(0, 60))
def test_a_position_knows_each_offset_and_where_the_finished_ones_end(
    base: int, lengths: list[tuple[int, int]], far: int
) -> None:
    position = position_of(base, lengths)
    inside = any(first <= base + far < after for first, after in position.finished)
    assert position.is_finished(base + far) == inside
    assert position.is_finished(base - 1)
    assert position.finished_end == max((after for _, after in position.finished), default=base)


@given(st.integers(0, 2**40), st.lists(st.tuples(LONG, LONG), max_size=4), st.integers(0, 2**45))
def test_ranges_of_any_length_come_back(
    base: int, lengths: list[tuple[int, int]], since: int
) -> None:
    position = position_of(base, lengths, since)
    assert decode_position(base, encode_metadata(position)) == position


def test_metadata_is_the_documented_text() -> None:
    """Run lengths as LEB128 (DWARF 5, 7.6), in base64: an older worker's must stay readable."""
    position = Position(10, ((11, 13), (141, 441)), 5)
    runs = bytes([1, 2, 0x80, 0x01, 0xAC, 0x02])
    text = f'{{"since_ms":5,"finished":"{base64.b64encode(runs).decode()}"}}'
    assert encode_metadata(position) == text
    assert decode_position(10, text) == position
    # A newer worker may say more.
    assert decode_position(10, '{"since_ms":5,"more":1}') == Position(10, (), 5)


@pytest.mark.parametrize("runs", [b"\x01", b"\x01\x02\x03", b"\x80", b"\x01\x80", b"\x01\x02\x80"])
def test_runs_that_were_cut_short_count_as_none(runs: bytes) -> None:
    text = f'{{"since_ms":5,"finished":"{base64.b64encode(runs).decode()}"}}'
    assert decode_position(7, text) == Position(7)


def test_characters_that_are_no_base64_are_not_passed_over() -> None:
    assert decode_position(7, '{"finished":"A!Q!I!=!"}') == Position(7)
    assert decode_position(7, '{"since_ms":3,"finished":"AQI="}') == Position(7, ((8, 10),), 3)


@pytest.mark.parametrize(
    ("length", "runs"),
    [
        (1, b"\x01"),
        (127, b"\x7f"),
        (128, b"\x80\x01"),
        (16_383, b"\xff\x7f"),
        (16_384, b"\x80\x80\x01"),
    ],
)
def test_a_run_takes_as_many_bytes_as_it_needs(length: int, runs: bytes) -> None:
    position = Position(0, ((1, 1 + length),))
    text = base64.b64encode(b"\x01" + runs).decode()
    assert encode_metadata(position) == f'{{"since_ms":0,"finished":"{text}"}}'


def test_what_was_never_delivered_between_two_records_is_passed_over_at_once() -> None:
    tracker = OffsetTracker()
    assert all(tracker.deliver(offset) for offset in (5, 9, 12))
    assert tracker.finish(5)
    assert tracker.base == 9
    assert tracker.finish(12)
    assert tracker.base == 9
    assert tracker.finish(9)
    assert tracker.base == 13
