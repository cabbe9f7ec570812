"""Processes of a side with their descendants: stopped, let run again, told apart, measured."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

import psutil

from benchmarks.harness import Broken
from infra.cores import divide


def freeze(group: int) -> None:
    """Stop a process group: it takes no CPU until :func:`thaw`."""
    os.killpg(group, signal.SIGSTOP)


def thaw(group: int) -> None:
    """Let a process group run again."""
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGCONT)


def family(leader: int) -> list[psutil.Process]:
    """A process and its living descendants."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(leader)
        return [process, *process.children(recursive=True)]
    return []


def groups(leader: int) -> set[int]:
    """The process groups of a family: Ray's and multiprocessing's may be several."""
    found = {leader}
    for process in family(leader):
        with suppress(ProcessLookupError):
            found.add(os.getpgid(process.pid))
    return found


def cpu_seconds(leader: int) -> float:
    """CPU time of a family, user and system."""
    total = 0.0
    for process in family(leader):
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def resident_bytes(leader: int) -> int:
    """RSS of a family."""
    total = 0
    for process in family(leader):
        with suppress(psutil.NoSuchProcess):
            total += process.memory_info().rss
    return total


def pin_engine(leader: int) -> None:
    """Keep the engine's own process on its share of the cores and the rest of the family off it."""
    members = family(leader)
    engine = set()
    for process in members:
        with suppress(psutil.NoSuchProcess):
            if "EngineCore" in " ".join([process.name(), *process.cmdline()]):
                engine.add(process.pid)
    if not engine:
        raise Broken("no process of the engine was found")
    divide(engine, [process.pid for process in members if process.pid not in engine])


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Variables of this process, within a block; children that are started there have them."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
