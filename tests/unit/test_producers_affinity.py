"""Affinity: Kafka's own partition while there is room, bounded load when there is not."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.testing import murmur2
from producers.affinity import (
    BoundedLoadRouter,
    home_partition,
    preferred_partitions,
    prefix_key,
)

KEYS = st.binary(max_size=20)


@given(KEYS, st.integers(1, 100))
def test_home_is_where_kafka_puts_the_key(key: bytes, partitions: int) -> None:
    assert home_partition(key, partitions) == (murmur2(key) & 0x7FFFFFFF) % partitions


def test_the_partitions_that_a_broker_gave_are_known() -> None:
    # As in tests/contract/test_bus.py, which asks a broker.
    known = {b"": 0, b"a": 1, b"ab": 2, b"abc": 0, b"abcd": 2, b"request-17": 2, b"\xff" * 9: 2}
    assert {key: home_partition(key, 3) for key in known} == known


@given(KEYS, st.integers(1, 60))
def test_every_partition_is_preferred_once_home_first(key: bytes, partitions: int) -> None:
    order = preferred_partitions(key, partitions)
    assert sorted(order) == list(range(partitions))
    assert order[0] == home_partition(key, partitions)


@given(KEYS, st.integers(3, 60))
def test_one_partition_more_moves_nothing_in_the_order_of_the_others(key: bytes, n: int) -> None:
    before = preferred_partitions(key, n)
    after = preferred_partitions(key, n + 1)
    homes = {before[0], after[0], n}
    assert [p for p in before if p not in homes] == [p for p in after if p not in homes]


def test_keys_of_one_home_spill_to_different_places() -> None:
    seconds: Counter[int] = Counter()
    for number in range(4_000):
        order = preferred_partitions(str(number).encode(), 12)
        if order[0] == 0:
            seconds[order[1]] += 1
    assert set(seconds) == set(range(1, 12))
    assert max(seconds.values()) < 3 * min(seconds.values())


@given(
    partitions=st.integers(1, 16),
    factor=st.floats(1.01, 3.0),
    floor=st.integers(1, 4),
    steps=st.lists(
        st.one_of(st.sampled_from([b"hot", b"warm"]), KEYS, st.integers(0, 1000)), max_size=120
    ),
)
def test_load_is_bounded_and_only_what_finds_its_home_full_moves(
    partitions: int, factor: float, floor: int, steps: list[bytes | int]
) -> None:
    router = BoundedLoadRouter(partitions, factor=factor, floor=floor)
    open_: list[int] = []
    for step in steps:
        if isinstance(step, int):
            if open_:
                router.done(open_.pop(step % len(open_)))
        else:
            loads = router.outstanding
            bound = max(floor, math.ceil(factor * (sum(loads) + 1) / partitions))
            chosen = router.choose(step)
            open_.append(chosen)
            assert router.outstanding[chosen] <= bound
            passed_over = preferred_partitions(step, partitions)
            passed_over = passed_over[: passed_over.index(chosen)]
            assert all(loads[partition] >= bound for partition in passed_over)
        assert Counter(open_) == Counter(dict(enumerate(router.outstanding)))


@given(
    partitions=st.integers(1, 16),
    factor=st.floats(1.01, 3.0),
    keys=st.lists(st.sampled_from([b"hot", b"warm", b"cold"]), max_size=200),
)
def test_with_no_floor_load_never_exceeds_the_factor_times_the_mean(
    partitions: int, factor: float, keys: list[bytes]
) -> None:
    router = BoundedLoadRouter(partitions, factor=factor, floor=1)
    for key in keys:
        router.choose(key)
        loads = router.outstanding
        assert max(loads) <= math.ceil(factor * sum(loads) / partitions)


@given(st.lists(KEYS, min_size=1, max_size=8), st.integers(1, 12))
def test_one_key_has_one_partition_while_there_is_room(keys: list[bytes], partitions: int) -> None:
    router = BoundedLoadRouter(partitions)
    for key in keys:
        assert router.choose(key) == home_partition(key, partitions)


def test_a_hot_key_keeps_its_few_partitions() -> None:
    """Requests over the bound share their next choices; when they are done, home is back."""
    router = BoundedLoadRouter(12, floor=4)
    order = preferred_partitions(b"hot", 12)
    chosen = [router.choose(b"hot") for _ in range(12)]
    assert chosen == [order[0]] * 4 + [order[1]] * 4 + [order[2]] * 4
    for partition in chosen:
        router.done(partition)
    assert router.choose(b"hot") == order[0]


def test_what_was_not_chosen_cannot_be_done() -> None:
    router = BoundedLoadRouter(2)
    with pytest.raises(ValueError, match="partition 1"):
        router.done(1)


@pytest.mark.parametrize("wrong", [{"factor": 1.0}, {"floor": 0}])
def test_a_router_that_could_find_no_room_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="above 1"):
        BoundedLoadRouter(3, **wrong)


@given(st.text(max_size=40), st.text(max_size=40), st.integers(1, 40))
def test_texts_that_begin_alike_share_a_key_and_others_do_not(a: str, b: str, n: int) -> None:
    assert (prefix_key(a, n) == prefix_key(b, n)) == (a[:n] == b[:n])


def test_a_prefix_key_is_fit_for_a_request_and_never_changes() -> None:
    key = prefix_key("You are a helpful assistant. " * 50 + "\ud800")
    assert len(key) <= 256
    # Every producer must compute the same: this value is a part of the contract.
    assert prefix_key("You are a helpful assistant.") == "prefix-8b969c0515669d5d3ba59a016944e31a"
