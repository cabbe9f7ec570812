"""How a request ends exactly once: one transaction, or a table of completed requests.

Measured, at the level of `stream_workers.outcomes` and `stream_workers.transactions`, without
Faust and without generation: results and positions in one transaction (`OutcomeLog` on
`TransactionalProducer`, as the worker does), against an idempotent producer that writes results
(acks=all), then markers on a compacted topic, then offsets, each step awaited, in batches of the
same bound (the alternative is written in `ends`). For each: results/s at saturation;
the time from the end of a generation to a `read_committed` reader having the result, at 20 and 500
results/s; bytes that one result adds to the broker's logs (results, markers, offsets,
transactions), at saturation and at 20/s; and final results that stand twice on the topic after the
writer was killed (SIGKILL) again and again under load and went on from what was committed.

Ratios are table over transaction. Not measured: consumers that deduplicate, a broker's death,
replication (one broker, so acks=all is one acknowledgement).
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from typing import Any

from kafka import KafkaAdminClient

from benchmarks.ends import PARTITIONS, TABLE
from benchmarks.harness import Broken, Report, command
from benchmarks.rpc import Served
from benchmarks.stage import Deployment, Stage
from benchmarks.stats import paired_ratio, percentile, spread
from benchmarks.turns import order_of
from benchmarks.written import written
from infra.contracts.bus import Bus
from infra.contracts.catalogue import RESULTS
from infra.contracts.codec import decode
from infra.contracts.events.generation import GenerationResult
from infra.kafka.connection import client_options

KINDS = ("transaction", "table")
RATES = (20, 500)
KILL_RATE = 500


class Latencies:
    """A ``read_committed`` reader in a thread: milliseconds from a result's end to its arrival."""

    def __init__(self, bus: Bus) -> None:
        self._reader = bus.reader([RESULTS.name], start="latest")
        self._stop = threading.Event()
        self.found: list[float] = []
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while not self._stop.is_set():
            for record in self._reader.poll(0.1):
                now = time.monotonic()
                ended = float(decode(record.value or b"", GenerationResult).worker_id)
                self.found.append(1000 * (now - ended))
        self._reader.close()

    def wait(self, count: int) -> list[float]:
        """Stop once so many came. Raises Broken."""
        deadline = time.monotonic() + 30
        while len(self.found) < count and time.monotonic() < deadline:
            time.sleep(0.05)
        self._stop.set()
        self._thread.join()
        if len(self.found) != count:
            raise Broken(f"{len(self.found)} results of {count} became visible")
        return self.found


class Contender:
    """One kind of writer on topics of its own. Requests are numbered through."""

    def __init__(self, stage: Stage, kind: str) -> None:
        self.kind = kind
        self.place: Deployment = stage.deployment(kind)
        admin = KafkaAdminClient(**client_options(self.place.kafka))
        name = self.place.kafka.topic_prefix + TABLE
        spec = {"num_partitions": PARTITIONS, "replication_factor": 1}
        admin.create_topics(
            {name: {**spec, "configs": {"cleanup.policy": "compact"}}}, wait_for_metadata=True
        )
        admin.close()
        self._stage = stage
        self.next = 0
        self._starts = 0
        self.writer = self.start()

    def start(self) -> Served:
        """A writer that goes on from what is committed."""
        self._starts += 1
        return Served(
            self._stage,
            f"{self.kind}-{self._starts}",
            "benchmarks.outcomes_writer",
            self.kind,
            self._stage.bootstrap_servers,
            self.place.kafka.topic_prefix,
        )

    def end(self, count: int, rate: int) -> dict[str, Any]:
        """Let the next ``count`` requests end."""
        first, self.next = self.next, self.next + count
        found: dict[str, Any] = self.writer.ask(300, rate_per_s=rate, first=first, count=count)
        return found


def measure(report: Report) -> None:
    """See the module."""
    rounds, many, seconds, kills = (1, 5_000, 4, 2) if report.quick else (3, 30_000, 15, 8)
    with Stage() as stage:
        sides = {kind: Contender(stage, kind) for kind in KINDS}
        for side in sides.values():
            side.end(2_000, 0)  # warm
        found: dict[str, dict[str, list[float]]] = {kind: {} for kind in KINDS}
        for number in range(rounds):
            for kind in order_of(KINDS, number):
                for label, value in one_round(stage, sides[kind], many, seconds).items():
                    found[kind].setdefault(label, []).append(value)
                report.say(f"round {number + 1}/{rounds} {kind}: " + shown(found[kind]))
        for kind in KINDS:
            found[kind]["duplicate finals after kill -9"] = [
                float(duplicates(sides[kind], kills, report))
            ]
            sides[kind].writer.close()
    report.figures = {
        "kills": kills,
        **{
            kind: {label: spread(values) for label, values in found[kind].items()} for kind in KINDS
        },
    }
    for label, values in found["transaction"].items():
        other = found["table"][label]
        if min(values) > 0:
            report.ratio(f"table / transaction: {label}", paired_ratio(other, values))
    report.ratio(
        "table - transaction: duplicate finals",
        found["table"]["duplicate finals after kill -9"][0]
        - found["transaction"]["duplicate finals after kill -9"][0],
    )


def shown(found: dict[str, list[float]]) -> str:
    """The newest round in a line."""
    return ", ".join(f"{label} {values[-1]:.4g}" for label, values in found.items())


def one_round(stage: Stage, side: Contender, many: int, seconds: int) -> dict[str, float]:
    """Saturation, then both rates."""
    before = stage.data_bytes()
    run = side.end(many, 0)
    found = {
        "results/s at saturation": run["ended"] / run["seconds"],
        "bytes a result at saturation": (stage.data_bytes() - before) / run["ended"],
    }
    for rate in RATES:
        reader = Latencies(side.place.bus)
        before = stage.data_bytes()
        side.end(rate * seconds, rate)
        if rate == RATES[0]:
            used = (stage.data_bytes() - before) / (rate * seconds)
            found[f"bytes a result at {rate}/s"] = used
        latencies = reader.wait(rate * seconds)
        for name, quantile in (("p50", 0.5), ("p95", 0.95)):
            found[f"ms until visible at {rate}/s, {name}"] = percentile(latencies, quantile)
    return found


def duplicates(side: Contender, kills: int, report: Report) -> int:
    """Kill the writer under load, go on from what is committed, and count second finals."""
    draw = random.Random(7)
    first, count = side.next, KILL_RATE * 4
    total = count * kills
    for number in range(kills):
        delay = 1.0 + 2.0 * draw.random()
        killer = threading.Timer(delay, side.writer.kill)
        killer.start()
        try:
            side.writer.ask(60, rate_per_s=KILL_RATE, first=first, count=total)
        except Broken:
            pass
        else:
            raise Broken("the writer was to be killed and was not")
        finally:
            killer.join()
        report.say(f"{side.kind}: killed {number + 1}/{kills} after {delay:.1f} s")
        side.writer = side.start()
    side.writer.ask(120, rate_per_s=0, first=first, count=total)
    finals = Counter(record.key for record in written(side.place, RESULTS.name))
    missing = first + total - len(finals)
    if missing:
        raise Broken(f"{side.kind}: {missing} requests have no result")
    return sum(finals.values()) - len(finals)


main = command(measure, name="bench_outcomes", description=__doc__)

if __name__ == "__main__":
    main()
