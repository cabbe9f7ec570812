"""Sides that take turns: while one is loaded, the processes of the others are stopped.

So no side pays for another's idle work, and each round of every side lies close in time to the
same round of the others.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from typing import Any, Protocol

from benchmarks.load import Load, Side, Window, closed_loop, open_loop
from benchmarks.processes import freeze, thaw
from benchmarks.sdk_side import through_kafka
from benchmarks.stage import Deployment
from benchmarks.stats import paired_ratio, spread
from infra.local.supervisor import Child

SETTLE_S = 1.0
WORKER_SETTINGS: dict[str, Any] = {
    "max_num_seqs": 256,
    "max_inflight_tokens": 1_000_000,
    # A stopped worker must not be thrown out of its group before its next turn.
    "session_timeout_s": 90,
}
"""Equal on all sides where they have a counterpart; everything else as shipped."""
KV_CACHE_GB = 0.5


class Contestant(Protocol):
    """One side."""

    def turn(self, load: Mapping[str, Any]) -> dict[str, Any]:
        """One window under ``load``; the side's processes are stopped again when it returns."""
        ...

    def log_tail(self) -> str:
        """The end of what the side's process wrote."""
        ...


def drive(load: Mapping[str, Any]) -> Load:
    """The loop that these parameters describe: open where they give a rate, else closed."""
    loop = open_loop if "rate_per_s" in load else closed_loop

    async def run(side: Side) -> Window:
        return await loop(side, **load)

    return run


class Platform:
    """The SDK in this process, Kafka, and a vLLM worker as a child."""

    def __init__(self, place: Deployment) -> None:
        self._place = place
        self.worker: Child = place.worker(engine="vllm", **WORKER_SETTINGS)
        freeze_idle(self.worker)

    def turn(self, load: Mapping[str, Any]) -> dict[str, Any]:
        """See :class:`Contestant`."""
        thaw(self.worker.pid)
        try:
            self.worker.check()
            return asdict(through_kafka(self._place.bus, drive(load)))
        finally:
            freeze_idle(self.worker)

    def log_tail(self) -> str:
        """See :class:`Contestant`."""
        return self.worker.log_tail()

    def close(self) -> None:
        """Stop the worker."""
        self._place.stage.stop(self.worker)


def freeze_idle(child: Child) -> None:
    """Stop the child's processes once its last commit is through."""
    time.sleep(SETTLE_S)
    if child.exit_status is None:
        freeze(child.pid)


def order_of(sides: Iterable[str], number: int) -> list[str]:
    """Who is first, second ... in a round: every other one is in reverse order."""
    names = list(sides)
    return names if number % 2 == 0 else names[::-1]


def take_turns(
    sides: Mapping[str, Contestant],
    load: Mapping[str, Any],
    rounds: int,
    say: Callable[[str], None],
) -> dict[str, list[dict[str, Any]]]:
    """``rounds`` windows of each side, interleaved; every other round in reverse order."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    for number in range(rounds):
        for name in order_of(sides, number):
            try:
                window = sides[name].turn(load)
            except Exception as error:
                error.add_note(f"while {name} was loaded; its log ends:\n{sides[name].log_tail()}")
                raise
            found[name].append(window)
            say(
                f"round {number + 1}/{rounds} {name}: {window['tokens_per_s']:.0f} tokens/s, "
                f"TTFT {window['ttft_ms'][0]:.0f} ms"
            )
    return found


def tokens_ratio(windows: Mapping[str, list[dict[str, Any]]], above: str, below: str) -> float:
    """Median over rounds of output tokens/s of one side over another's."""
    rates = {name: [window["tokens_per_s"] for window in windows[name]] for name in (above, below)}
    return paired_ratio(rates[above], rates[below])


def condensed(windows: Mapping[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Figures of each side: medians over rounds, with the spread of the rate."""
    result: dict[str, Any] = {}
    for name, rounds in windows.items():
        result[name] = {
            "tokens_per_s": spread([window["tokens_per_s"] for window in rounds]),
            "requests_per_s": spread([window["requests_per_s"] for window in rounds])["median"],
            "deltas_per_token": spread([w["deltas_per_token"] for w in rounds])["median"],
        }
        for latency in ("ttft_ms", "itl_ms"):
            result[name][latency] = {
                quantile: spread([window[latency][index] for window in rounds])["median"]
                for index, quantile in enumerate(("p50", "p95", "p99"))
            }
    return result
