"""What bench_peers works out by itself: lines that people write, CPU a request, who is ahead."""

from __future__ import annotations

import os
import subprocess
import sys
from textwrap import dedent
from typing import Any

import psutil
import pytest

from benchmarks.bench_peers import (
    ASYNCLLM,
    FAUST,
    HTTP,
    KAFKA,
    SIDES,
    WRITTEN,
    ahead,
    code_lines,
    lines_of,
    with_cpu,
    written_lines,
)
from benchmarks.peers_sides import per_request
from benchmarks.processes import environment, groups
from benchmarks.sdk_side import SdkSide

SOURCE = dedent(
    '''
    """A docstring
    of two lines."""
    import os
    from typing import (
        Any,
    )

    # a comment
    NAME = """one

    text"""  # three lines


    def call(value: Any) -> None:
        """Nothing."""
        print(
            value,  # and a comment

            os,
        )
    '''
)


def test_lines_of_code_are_those_that_say_something() -> None:
    assert code_lines(SOURCE) == 3 + 1 + 4


@pytest.mark.parametrize("source", ["", "\n\n", "# only\n", '"""only"""\n', "import os\n"])
def test_what_says_nothing_counts_nothing(source: str) -> None:
    assert code_lines(source) == 0


def test_a_class_is_counted_without_the_rest_of_its_file() -> None:
    assert 0 < lines_of([SdkSide]) < 40


def test_every_side_has_a_source_that_somebody_writes() -> None:
    assert set(WRITTEN) == set(SIDES)
    for name in SIDES:
        found = written_lines(name, 3)
        assert found["total"] == found["worker"] + found["client"] + 3
        assert found["worker"] + found["client"] > 0


def test_cpu_is_shared_out_over_requests() -> None:
    before = {"side": 1.0, "broker": 2.0}
    assert per_request(before, {"side": 3.0, "broker": 2.5}, 4) == {"side": 0.5, "broker": 0.125}


def window(tokens_per_s: float, requests: int, cpu_s: float) -> dict[str, Any]:
    return {
        "tokens_per_s": tokens_per_s,
        "requests_per_s": 1.0,
        "requests": requests,
        "deltas_per_token": 1.0,
        "ttft_ms": (10.0, 20.0, 30.0),
        "itl_ms": (1.0, 2.0, 3.0),
        "cpu_s_per_request": {"side": cpu_s, "broker": 0.0, "client": 0.0},
    }


def test_rounds_with_more_requests_weigh_more() -> None:
    found = with_cpu({KAFKA: [window(100, 1, 4.0), window(300, 3, 2.0), window(200, 0, 9.0)]})
    assert found[KAFKA]["cpu_s_per_request"]["side"] == 2.5
    assert found[KAFKA]["tokens_per_s"]["median"] == 200
    assert found[KAFKA]["itl_ms"] == {"p50": 1.0, "p95": 2.0, "p99": 3.0}


def test_peers_that_do_better_are_named_the_best_first() -> None:
    found = with_cpu(
        {
            ASYNCLLM: [window(300, 1, 1.0)],
            FAUST: [window(200, 1, 3.0)],
            KAFKA: [window(100, 1, 2.0)],
            HTTP: [window(250, 1, 0.5)],
        }
    )
    kafka, http = ahead(found)[KAFKA], ahead(found)[HTTP]
    assert kafka["tokens/s"] == [ASYNCLLM, FAUST]
    assert http["tokens/s"] == [ASYNCLLM]
    assert kafka["CPU a request, broker included"] == [ASYNCLLM]
    assert http["CPU a request, broker included"] == []
    assert kafka["TTFT p50"] == []


def test_variables_are_as_before_after_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEERS_SET", "before")
    monkeypatch.delenv("PEERS_UNSET", raising=False)
    with environment({"PEERS_SET": "within", "PEERS_UNSET": "within"}):
        assert os.environ["PEERS_SET"] == os.environ["PEERS_UNSET"] == "within"
    assert os.environ["PEERS_SET"] == "before"
    assert "PEERS_UNSET" not in os.environ


def test_a_family_may_have_several_groups() -> None:
    """Ray's processes leave the group of the one that starts them: stopping that is not enough."""
    child = "import time; print('up', flush=True); time.sleep(60)"
    parent = (
        "import subprocess, sys, time; "
        f"subprocess.Popen([sys.executable, '-c', {child!r}], start_new_session=True); "
        "time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", parent], start_new_session=True, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        process.stdout.readline()
        found = groups(process.pid)
        (grandchild,) = psutil.Process(process.pid).children()
        assert found == {process.pid, grandchild.pid}
    finally:
        grandchildren = psutil.Process(process.pid).children()
        process.kill()
        for each in grandchildren:
            each.kill()
        # Theirs is the same pipe.
        process.communicate()
