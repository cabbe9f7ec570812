"""OffsetTracker: strictly ordered acks over any order of completion."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_workers.offsets import OffsetTracker


@given(data=st.data(), offsets=st.sets(st.integers(0, 10_000), max_size=40))
def test_never_acks_past_an_unfinished_offset(data: st.DataObject, offsets: set[int]) -> None:
    delivered = sorted(offsets)
    tracker = OffsetTracker()
    acked: list[int] = []
    unfinished: set[int] = set()
    waiting = list(delivered)
    while waiting or unfinished:
        if waiting and (not unfinished or data.draw(st.booleans())):
            offset = waiting.pop(0)
            tracker.deliver(offset)
            unfinished.add(offset)
        else:
            offset = data.draw(st.sampled_from(sorted(unfinished)))
            unfinished.remove(offset)
            acked += tracker.finish(offset)
        assert acked == delivered[: len(acked)]
        assert not unfinished & set(acked)
        assert tracker.pending == len(delivered) - len(waiting) - len(acked)
    assert acked == delivered


def test_unknown_and_repeated_offsets_ack_nothing() -> None:
    tracker = OffsetTracker()
    tracker.deliver(5)
    assert tracker.finish(4) == []
    assert tracker.finish(5) == [5]
    assert tracker.finish(5) == []


def test_delivery_must_ascend() -> None:
    tracker = OffsetTracker()
    tracker.deliver(5)
    with pytest.raises(ValueError, match="delivered after 5"):
        tracker.deliver(5)
