"""How cores are shared between an engine and the rest."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra import cores


@given(st.sets(st.integers(0, 300), min_size=1))
def test_every_core_is_used_and_none_twice(numbers: set[int]) -> None:
    shared = cores.share(numbers)
    assert shared.engine | shared.others == numbers
    assert shared.engine
    assert shared.others
    if len(numbers) > 1:
        assert not shared.engine & shared.others
        assert len(shared.engine) >= len(shared.others)


@pytest.mark.parametrize(("count", "reserved"), [(1, 1), (2, 1), (8, 1), (16, 2), (64, 8)])
def test_how_many_are_left_to_the_rest(count: int, reserved: int) -> None:
    shared = cores.share(range(count))
    assert len(shared.others) == reserved
    assert shared.others == frozenset(range(reserved))


def test_a_process_is_kept_to_its_share_with_all_its_threads() -> None:
    code = (
        "import sys, threading; e = threading.Event(); "
        "threading.Thread(target=e.wait, daemon=True).start(); print(1, flush=True); "
        "sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        cores.divide(engine=[child.pid], others=[])
        wanted = cores.share(cores.available()).engine
        threads = [int(name) for name in os.listdir(f"/proc/{child.pid}/task")]
        assert len(threads) == 2
        assert {frozenset(os.sched_getaffinity(thread)) for thread in threads} == {wanted}
        child.communicate(b"")
