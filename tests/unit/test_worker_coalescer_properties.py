"""Coalescer: what goes out when, and that a chunk is of one version."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.contracts.events.generation import TokenLogprob
from stream_workers.coalescer import CROWD, WIDEST, ChunkDraft, Coalescer, crowding

STEP = st.tuples(
    st.integers(0, 3),  # tokens
    st.booleans(),  # with text
    st.integers(0, 12),  # time since the last one, in eighths: exact on the clock
    st.sampled_from(["m@1", "m@2"]),
)


def logprob(token: int) -> TokenLogprob:
    return TokenLogprob(token=str(token), token_id=token, logprob=-1.0)


@given(
    steps=st.lists(STEP, max_size=40),
    size=st.integers(1, 6),
    interval=st.sampled_from([0, 8, 24]),
    first=st.integers(0, 5),
)
def test_what_is_due_goes_out_and_nothing_else_does(
    steps: list[tuple[int, bool, int, str]], size: int, interval: int, first: int
) -> None:
    coalescer = Coalescer(interval_s=interval / 8, max_tokens=size, first_token=first)
    now, number, sent = 0, 0, first
    last: int | None = None
    waiting: list[tuple[int, str]] = []
    version = ""

    def drafted(chunk: ChunkDraft, of_version: str) -> None:
        nonlocal sent, waiting, last
        tokens = tuple(token for token, _ in waiting if token >= 0)
        assert chunk.version == of_version
        assert chunk.first_token == sent
        assert chunk.token_ids == tokens
        assert chunk.text == "".join(text for _, text in waiting)
        assert [one.token_id for one in chunk.logprobs] == list(tokens)
        sent, waiting, last = sent + len(tokens), [], now

    for count, speaks, gap, newer in steps:
        now += gap
        tokens = tuple(range(number, number + count))
        number += count
        text = f"<{number}>" if speaks else ""
        found = coalescer.add(tokens, text, newer, now / 8, tuple(map(logprob, tokens)))
        if newer != version and waiting:
            drafted(found.pop(0), version)
        version = newer
        waiting += [(token, "") for token in tokens] + ([(-1, text)] if text else [])
        ticked = last is None or not interval or now // interval > last // interval
        full = sum(token >= 0 for token, _ in waiting) >= size
        if waiting and (ticked or full):
            drafted(found.pop(0), version)
        assert found == []
        assert coalescer.pending == bool(waiting)
    # What is left is of the version that made it, and an empty end of the one that is named.
    drafted(coalescer.finish("m@9", now / 8), version if waiting else "m@9")
    assert not coalescer.pending


def test_what_comes_last_waits_for_the_end_whatever_is_due() -> None:
    coalescer = Coalescer(interval_s=0.0, max_tokens=1)
    assert coalescer.add((1, 2), "ab", "m@1", 0.0, last=True) == []
    assert coalescer.finish("m@1", 0.0) == ChunkDraft(
        first_token=0, token_ids=(1, 2), text="ab", version="m@1"
    )
    switched = Coalescer(interval_s=9.0, max_tokens=9)
    assert len(switched.add((1,), "a", "m@1", 0.0)) == 1
    assert switched.add((2,), "b", "m@1", 1.0) == []
    (before,) = switched.add((3,), "c", "m@2", 1.0, last=True)
    assert (before.token_ids, before.version) == ((2,), "m@1")
    end = switched.finish("m@2", 1.0)
    assert (end.first_token, end.token_ids, end.version) == (2, (3,), "m@2")


@given(st.integers(0, 100 * CROWD))
def test_a_crowd_gathers_longer_in_whole_steps_up_to_the_widest(in_flight: int) -> None:
    found = crowding(in_flight)
    assert 1 <= found <= WIDEST
    assert found <= crowding(in_flight + 1) <= found + 1
    if WIDEST > found > 1:
        assert abs(found - in_flight / CROWD) <= 0.5


@pytest.mark.parametrize(
    ("in_flight", "times"), [(0, 1), (23, 1), (25, 2), (3 * CROWD, 3), (10 * CROWD, WIDEST)]
)
def test_the_crowd_counts_in_sixteens(in_flight: int, times: int) -> None:
    assert crowding(in_flight) == times
