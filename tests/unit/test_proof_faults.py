"""The faults of the chaos runs do what they are called, and come again from the same seed."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.proof.faults import TARGETS, drawn
from tests.proof.skew import Skew, build
from tests.proof.switchboard import Switchboard

ASK = """
import os, sys, time
with open(sys.argv[1], "wb", buffering=0) as stream:
    for line in sys.stdin:
        begin = time.monotonic()
        stream.write(b"x")
        print(time.time(), time.monotonic() - begin, flush=True)
"""
TALK = """
import socket, sys
for line in sys.stdin:
    with socket.create_connection(("127.0.0.1", int(line)), 5) as made:
        made.settimeout(1)
        try:
            made.sendall(b"hello")
            print(made.recv(5).decode() or "closed", flush=True)
        except (TimeoutError, ConnectionError) as error:
            print(type(error).__name__, flush=True)
"""


def test_a_seed_draws_the_same_rounds_whatever_was_before() -> None:
    rounds = [drawn(1, number) for number in range(1, 101)]
    assert [drawn(1, number) for number in range(100, 0, -1)] == rounds[::-1]
    assert [drawn(2, number) for number in range(1, 101)] != rounds
    kinds = Counter(fault.kind for fault in rounds)
    assert kinds.keys() == TARGETS.keys()
    assert {fault.target for fault in rounds} >= {"gateway", "trainer", "worker-0", "broker-1"}
    assert all(fault.target in TARGETS[fault.kind] for fault in rounds)


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_a_process_whose_clock_is_off_and_whose_disk_is_slow(tmp_path: Path) -> None:
    skew = Skew(build(tmp_path), tmp_path / "skew")
    with subprocess.Popen(
        [sys.executable, "-c", ASK, str(tmp_path / "written")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=skew.environment,
        text=True,
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None

        def ask() -> tuple[float, float]:
            assert child.stdin is not None
            assert child.stdout is not None
            child.stdin.write("\n")
            child.stdin.flush()
            off, took = map(float, child.stdout.readline().split())
            return off - time.time(), took

        assert abs(ask()[0]) < 100
        skew.set(clock_s=7_200)
        assert ask()[0] == pytest.approx(7_200, abs=100)
        skew.set(clock_s=-7_200, disk_s=0.2)
        off, took = ask()
        assert off == pytest.approx(-7_200, abs=100)
        assert took >= 0.2
        skew.set()
        assert abs(ask()[0]) < 100
        child.stdin.close()
    assert child.returncode == 0


def may_make_networks() -> bool:
    asked = ["unshare", "--net", "ip", "link"]
    return (
        all(map(shutil.which, ("unshare", "ip")))
        and subprocess.run(asked, capture_output=True, check=False).returncode == 0
    )


@pytest.fixture
def echo() -> Iterator[int]:
    """A port that says again what it is told."""
    listener = socket.create_server(("127.0.0.1", 0))

    def answer(made: socket.socket) -> None:
        with made:
            while data := made.recv(1_000):
                made.sendall(data)

    def serve() -> None:
        while True:
            try:
                made, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=[made], daemon=True).start()

    thread = threading.Thread(target=serve)
    thread.start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()


@pytest.mark.skipif(not may_make_networks(), reason="needs root, for network namespaces")
def test_a_network_that_is_cut_held_up_and_healed(echo: int) -> None:
    with (
        Switchboard("proof-test") as board,
        socket.create_server(("127.0.0.1", 0)) as unreachable,
    ):
        board.add("one", [echo])
        with subprocess.Popen(
            board.inside("one", [sys.executable, "-c", TALK]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as child:
            assert child.stdin is not None
            assert child.stdout is not None

            def talk(port: int = echo) -> str:
                assert child.stdin is not None
                assert child.stdout is not None
                child.stdin.write(f"{port}\n")
                child.stdin.flush()
                return child.stdout.readline().strip()

            assert talk() == "hello"
            board.cut("one")
            assert talk() == "TimeoutError"
            board.heal("one")
            assert talk() == "hello"
            board.delay("one", 0.8)
            assert talk() == "TimeoutError"
            board.heal("one")
            assert talk() == "hello"
            # No other port of this side is there.
            assert talk(unreachable.getsockname()[1]) == ""
            assert child.stderr is not None
            assert "ConnectionRefusedError" in child.stderr.read()


@pytest.mark.skipif(not may_make_networks(), reason="needs root, for network namespaces")
def test_a_port_of_a_network_is_found_where_it_is_published() -> None:
    serve = "import socket; s = socket.create_server(('127.0.0.1', 7000)); print(flush=True)\n"
    serve += "while True: s.accept()[0].sendall(b'hello')"
    with Switchboard("proof-port") as board:
        board.add("one", [])
        with subprocess.Popen(
            board.inside("one", [sys.executable, "-c", serve]), stdout=subprocess.PIPE
        ) as child:
            assert child.stdout is not None
            child.stdout.readline()
            port = board.publish("one", 7000)
            with socket.create_connection(("127.0.0.1", port)) as made:
                assert made.recv(5) == b"hello"
                board.withdraw(port)
                with pytest.raises(ConnectionRefusedError):
                    socket.create_connection(("127.0.0.1", port))
            assert board.publish("one", 7000, at=port) == port
            board.cut("one")
            with socket.create_connection(("127.0.0.1", port)) as made:
                made.settimeout(0.5)
                with pytest.raises(TimeoutError):
                    made.recv(5)
                board.heal("one")
                made.settimeout(10)
                assert made.recv(5) == b"hello"
            child.kill()
