"""How an engine that computes on the CPU shares a machine's cores with everything else.

An engine step waits for its slowest thread. Where the scheduler lets Kafka, clients and workers
take turns on the engine's cores, every stream waits for them; on cores of its own the engine
loses nothing.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

PER_RESERVED = 8
"""One core in so many is left to everything else, at least one."""


@dataclass(frozen=True, slots=True)
class Cores:
    """Core numbers. A machine's only core is in both."""

    engine: frozenset[int]
    others: frozenset[int]


def share(cores: Collection[int]) -> Cores:
    """The lowest numbers are for everything else, the rest for the engine."""
    ordered = sorted(cores)
    if len(ordered) < 2:
        return Cores(frozenset(ordered), frozenset(ordered))
    reserved = max(1, len(ordered) // PER_RESERVED)
    return Cores(frozenset(ordered[reserved:]), frozenset(ordered[:reserved]))


def available() -> frozenset[int]:
    """The cores that this process may use."""
    return frozenset(os.sched_getaffinity(0))


def confine(process_id: int, cores: Collection[int]) -> None:
    """Keep a process, with the threads it has and will have, on ``cores``.

    A thread that ends meanwhile is passed over. Raises PermissionError for another user's process.
    """
    for task in Path(f"/proc/{process_id}/task").iterdir():
        with suppress(ProcessLookupError):
            os.sched_setaffinity(int(task.name), cores)


def divide(engine: Iterable[int], others: Iterable[int]) -> None:
    """Keep these processes, by id, to the share of each in the cores available here."""
    cores = share(available())
    for process_id in engine:
        confine(process_id, cores.engine)
    for process_id in others:
        confine(process_id, cores.others)
