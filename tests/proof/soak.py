"""Mixed traffic for long, with swaps and training rounds, and every process watched.

    python -m tests.proof.soak --minutes 60 --engine vllm

Interactive and batch requests, requests over HTTP, cancellations, malformed records and feedback;
a version is promoted every minute, and the trainer makes some of the feedback. At the end all of
``rules`` must hold, nobody may have been refused, no lag may be left, and memory and open files of
each process must be what they were.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from tests.proof.deployment import MODEL, Deployment, Plan
from tests.proof.journal import newest

SAMPLE_S = 5.0
SWAP_S = 60.0
GROWTH = 0.10
GROWTH_BYTES = 48 * 2**20
MORE_FILES = 12
"""What sockets and segments come and go; a leak of one a swap is more within an hour."""


@dataclass(kw_only=True)
class Samples:
    """Of one process, in time's order.

    ``settled``: so many were taken before the first training round.
    """

    rss: list[int] = field(default_factory=list)
    files: list[int] = field(default_factory=list)
    settled: int = 0

    def ends(self, values: Sequence[int]) -> tuple[Sequence[int], Sequence[int]]:
        """The quarter that growth is measured from, and the last.

        The former is the second, or the one after ``settled`` where that is later: what a process
        takes for its first round (a model, a training library) it keeps, and is no leak.
        """
        size = max(1, len(values) // 4)
        last = max(0, len(values) - size)
        begin = min(max(size, self.settled), max(0, last - size))
        return values[begin : begin + size], values[last:]

    def growth(self) -> tuple[float, int]:
        """Of the resident bytes and of open files, between the two ``ends``."""
        before, after = (median(part) for part in self.ends(self.rss))
        least, most = (max(part) for part in self.ends(self.files))
        return after - before, most - least


@dataclass(kw_only=True)
class Outcome:
    """Of a soak. ``faults`` is empty when all is well."""

    counts: dict[str, int]
    swaps: int
    rounds: int
    samples: dict[str, Samples]
    faults: list[str]

    def table(self) -> str:
        lines = [f"{'process':20} {'RSS, MB':>18} {'open files':>14}"]
        for name, found in self.samples.items():
            rss = " to ".join(f"{median(part) / 1e6:,.0f}" for part in found.ends(found.rss))
            files = " to ".join(f"{max(part)}" for part in found.ends(found.files))
            lines.append(f"{name:20} {rss:>18} {files:>14}")
        return "\n".join(lines)


def plan_of(minutes: float, *, engine: str, rate: float = 4.0) -> Plan:
    """Such that two rounds at the least find enough feedback."""
    return Plan(
        engine=engine,
        workers=2 if engine == "memory" else 1,
        rate=rate,
        min_examples=max(20, int(minutes * 60 * rate * 0.2 / 4)),
        feedback_window_s=max(120.0, minutes * 60 / 8),
    )


def soak(place: Deployment, minutes: float) -> Outcome:
    """Traffic for so long, then rest."""
    place.start_traffic()
    samples: dict[str, Samples] = {}
    begin = time.monotonic()
    end, swaps = begin + minutes * 60, 0
    sampled = begin
    while (now := time.monotonic()) < end:
        for child in place.children.values():
            child.check()
        for name, process in place.processes().items():
            one = samples.setdefault(name, Samples())
            one.rss.append(process.memory_info().rss)
            one.files.append(process.num_fds())
        if now - begin > (swaps + 1) * SWAP_S:
            swaps += swap(place)
            trained = rounds(place)
            place.say(f"{(now - begin) / 60:5.1f} min: {swaps} swaps, {trained} rounds")
            if trained:
                for one in samples.values():
                    one.settled = one.settled or len(one.rss)
        sampled = max(sampled + SAMPLE_S, time.monotonic())
        time.sleep(max(0.0, sampled - time.monotonic()))
    counts = place.stop_traffic()
    faults = place.faults()
    faults += [f"{n} {what}" for what, n in counts.items() if "failed" in what]
    if rounds(place) < 2:
        faults.append(f"{rounds(place)} training rounds")
    return Outcome(
        counts=counts,
        swaps=swaps,
        rounds=rounds(place),
        samples=samples,
        faults=faults + grown(samples),
    )


def versions(place: Deployment) -> list[str]:
    """Those that may serve, in order."""
    found = newest(place.journal.records["model.registry"]).values()
    fit = [one for one in found if one is not None and (one["gate"] or {"passed": True})["passed"]]
    return [str(one["version"]) for one in fit]


def rounds(place: Deployment) -> int:
    """Versions that were made of feedback, whether they passed the gate or not."""
    found = newest(place.journal.records["model.registry"]).values()
    return sum(one is not None and one["lineage"]["feedback_examples"] > 0 for one in found)


def swap(place: Deployment) -> int:
    """Promote the next one in turn; 0 where there is none other."""
    place.journal.read()
    rollout = newest(place.journal.records["model.rollouts"]).get(MODEL)
    fit = versions(place)
    if rollout is None or len(fit) < 2:
        return 0
    following = fit[(fit.index(rollout["stable"]) + 1) % len(fit)]
    place.run("models", "promote", following, "--reason", "its turn")
    return 1


def grown(samples: dict[str, Samples]) -> list[str]:
    """Processes that hold more at the end than they did when they had settled."""
    found = []
    for name, one in samples.items():
        rss, files = one.growth()
        if rss > max(GROWTH * median(one.ends(one.rss)[0]), GROWTH_BYTES):
            found.append(f"{name} grew by {rss / 1e6:,.0f} MB")
        if files > MORE_FILES:
            found.append(f"{name} has {files} open files more")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--engine", choices=["memory", "vllm"], default="vllm")
    parser.add_argument("--rate", type=float, default=4.0, help="actions a second")
    parser.add_argument("--home", type=Path, help="an empty folder, which is kept")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    options = parser.parse_args()
    # As Ctrl-C does: what was started is stopped.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    plan = plan_of(options.minutes, engine=options.engine, rate=options.rate)

    def say(line: str) -> None:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    with tempfile.TemporaryDirectory(prefix="soak-") as temporary:
        home = options.home or Path(temporary)
        with Deployment(home, plan, say) as place:
            outcome = soak(place, options.minutes)
    say(outcome.table())
    say(f"{outcome.swaps} swaps, {outcome.rounds} training rounds, sent {outcome.counts}")
    say("\n".join(outcome.faults) or "no fault")
    if options.json:
        figures = {
            "minutes": options.minutes,
            "engine": options.engine,
            "counts": outcome.counts,
            "swaps": outcome.swaps,
            "rounds": outcome.rounds,
            "processes": {
                name: {"rss": one.rss, "files": one.files} for name, one in outcome.samples.items()
            },
            "faults": outcome.faults,
        }
        options.json.write_text(json.dumps(figures) + "\n")
    return 1 if outcome.faults else 0


if __name__ == "__main__":
    sys.exit(main())
