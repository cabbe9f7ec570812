"""Output tokens/s with all telemetry on over those with none, and what a bad collector costs.

Measured: SDK -> Kafka -> vLLM worker -> Kafka -> SDK as in `bench_overhead`, in a closed loop at
concurrency 64, on sides that differ only in their `OTEL_*` variables. *off* has none. *on*
sends every trace, metrics every 5 s (the SDK's default is 60) and logs over OTLP to a process on
loopback that answers at once and looks at nothing before the end. Two more are like *on*, with
a collector whose port is closed and one that takes every request and never answers. A second side
without telemetry says how much two processes that do the same differ. Client and worker both have
the side's telemetry and are processes of their own. While one side is loaded the
others' are stopped. Every stream must be whole and every final result must have come, on all sides.
At the end each process is asked to stop after a last short load, and how long that takes is
compared with *off*: the telemetry may hold it up for as long as it says it does, and a second for
what exits differ by anyway.

The receiving process takes CPU from the engine as a collector on the same machine would, except
for decoding. That nothing was lost on the way is measured too: requests of which the worker's span
arrived, over all requests. Not measured: a real collector, gzip, a network.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import click

from benchmarks.harness import Broken, Report, Target, command, project_home, table
from benchmarks.models import embedded_model
from benchmarks.processes import cpu_seconds, environment, thaw
from benchmarks.rpc import Served
from benchmarks.stage import Deployment, Stage
from benchmarks.stats import paired_ratio, spread
from benchmarks.turns import (
    WORKER_SETTINGS,
    Contestant,
    condensed,
    freeze_idle,
    take_turns,
    tokens_ratio,
)
from infra.contracts.catalogue import REQUESTS
from infra.local.supervisor import Child
from observability.setup import SHUTDOWN_TIMEOUT_S

CONCURRENCY = 64
LOAD = {"concurrency": CONCURRENCY, "ramp_s": 4.0, "window_s": 10.0}
QUICK_LOAD = {"concurrency": CONCURRENCY, "ramp_s": 3.0, "window_s": 6.0}
SHORT_LOAD = {"concurrency": CONCURRENCY, "ramp_s": 1.0, "window_s": 2.0}
TOKENS_TARGET = Target(">=", 0.97)
EXIT_TARGET = Target("<=", SHUTDOWN_TIMEOUT_S + 1.0)
COMPLETE_TARGET = Target(">=", 1.0)
METRIC_INTERVAL_MS = 5_000
TURN_TIMEOUT_S = 240.0
EXIT_TIMEOUT_S = 30.0
OFF, ON, DEAD, HANGING = "off", "on", "closed port", "no answer"
AGAIN = "off again"
OPTIONS = [
    click.Option(
        ["--engine"],
        type=click.Choice(["vllm", "memory"]),
        default="vllm",
        help="memory: tries the benchmark out; what it measures is no claim.",
    )
]


class Observed:
    """A worker and a client with telemetry of their own; implements ``turns.Contestant``."""

    def __init__(self, place: Deployment, engine: str, telemetry: Mapping[str, str]) -> None:
        self._place = place
        with inherited(telemetry):
            self.worker: Child = place.worker(
                engine=engine,
                # About what the engine takes for a step.
                token_interval_s=0.0 if engine == "vllm" else 0.01,
                **WORKER_SETTINGS,
            )
            self.client = Served(
                place.stage,
                f"{place.kafka.topic_prefix}client",
                "benchmarks.sdk_child",
                place.stage.bootstrap_servers,
                place.kafka.topic_prefix,
            )
        self.requests = 0
        self._freeze()

    def turn(self, load: Mapping[str, Any]) -> dict[str, Any]:
        """See ``turns.Contestant``."""
        before = self._cpu_seconds()
        thaw(self.worker.pid)
        try:
            self.worker.check()
            window: dict[str, Any] = self.client.ask(TURN_TIMEOUT_S, **load)
        finally:
            self._freeze()
        self.requests += window["requests"]
        spent = self._cpu_seconds() - before
        window["cpu_ms_per_request"] = 1000 * spent / window["requests"]
        return window

    def log_tail(self) -> str:
        """See ``turns.Contestant``."""
        return f"{self.client.log_tail()}\nand its worker's:\n{self.worker.log_tail()}"

    def stop(self) -> dict[str, float]:
        """Seconds that each process took to end once asked to. Raises Broken."""
        thaw(self.worker.pid)
        began = time.monotonic()
        status = self._place.stage.stop(self.worker, EXIT_TIMEOUT_S)
        worker_s = time.monotonic() - began
        if status != 0:
            raise Broken(f"the worker ended with status {status}:\n{self.worker.log_tail()}")
        began = time.monotonic()
        self.client.close()
        return {"worker": worker_s, "client": time.monotonic() - began}

    def _cpu_seconds(self) -> float:
        return cpu_seconds(self.worker.pid) + cpu_seconds(self.client.pid)

    def _freeze(self) -> None:
        freeze_idle(self.worker)
        self.client.freeze()


def measure(report: Report, engine: str = "vllm") -> None:
    """See the module."""
    rounds, load = (1, QUICK_LOAD) if report.quick else (5, LOAD)
    with Stage() as stage, closed_port() as closed:
        receiving = Served(stage, "receiving", "benchmarks.otlp_sink", "receive")
        hanging = Served(stage, "hanging", "benchmarks.otlp_sink", "hang")
        telemetry = {
            OFF: {},
            ON: exporting(receiving.ask(10)["url"]),
            DEAD: exporting(closed),
            HANGING: exporting(hanging.ask(10)["url"]),
            AGAIN: {},
        }
        sides: dict[str, Observed] = {}
        for name, variables in telemetry.items():
            report.say(f"starting the worker and the client: {name}")
            place = stage.deployment(name.replace(" ", "-"))
            place.publish_model(embedded_model() if engine == "vllm" else None)
            sides[name] = Observed(place, engine, variables)
        # A worker that was stopped for long has to join its group again.
        report.say("a short load on each, which does not count")
        contestants: dict[str, Contestant] = dict(sides)
        take_turns(contestants, SHORT_LOAD, 1, report.say)
        report.say(f"closed loop, concurrency {CONCURRENCY}")
        windows = take_turns(contestants, load, rounds, report.say)
        exits = {name: ending(report, name, side) for name, side in sides.items()}
        found = receiving.ask(TURN_TIMEOUT_S, topic=REQUESTS.name)
        unanswered = hanging.ask(10)["exports"]
        for sink in (receiving, hanging):
            sink.close()
    check_received(found, unanswered)
    claim = engine == "vllm"
    for name in (ON, DEAD, HANGING):
        report.ratio(
            f"{name} / off, tokens/s, concurrency {CONCURRENCY}",
            tokens_ratio(windows, name, OFF),
            TOKENS_TARGET if claim else None,
        )
    report.ratio(
        f"{AGAIN} / off, tokens/s, concurrency {CONCURRENCY}", tokens_ratio(windows, AGAIN, OFF)
    )
    cpu_ms = {name: [one["cpu_ms_per_request"] for one in windows[name]] for name in sides}
    report.ratio(
        "on / off, CPU time of worker and client a request", paired_ratio(cpu_ms[ON], cpu_ms[OFF])
    )
    for name in (ON, DEAD, HANGING):
        delay = max(exits[name][process] - exits[OFF][process] for process in exits[OFF])
        report.ratio(f"{name} - off, longest delay of an exit, s", delay, EXIT_TARGET)
    report.ratio(
        "on: requests whose worker's span arrived / requests",
        found["traces"] / sides[ON].requests,
        COMPLETE_TARGET,
    )
    report.figures = {
        f"closed loop, concurrency {CONCURRENCY}": condensed(windows),
        "cpu_ms_per_request": {name: spread(each) for name, each in cpu_ms.items()},
        "exit_s": exits,
        "received": {
            "requests": sides[ON].requests,
            "spans_per_request": found["spans"] / sides[ON].requests,
            "bytes_per_request": found["bytes"] / sides[ON].requests,
            **found,
        },
        "unanswered_exports": unanswered,
    }
    show(report)


def ending(report: Report, name: str, side: Observed) -> dict[str, float]:
    """A last short load, then the end: there is something to flush."""
    side.turn(SHORT_LOAD)
    seconds = side.stop()
    report.say(f"{name}: worker ended in {seconds['worker']:.1f} s, client {seconds['client']:.1f}")
    return seconds


def check_received(found: Mapping[str, Any], unanswered: int) -> None:
    """That the sides were what they are called. Raises Broken."""
    if not all(found[signal] for signal in ("spans", "metrics", "logs")):
        raise Broken(f"not every signal arrived: {found}")
    if not unanswered:
        raise Broken("nothing was sent to the collector that does not answer")


def exporting(url: str) -> dict[str, str]:
    """What turns everything on."""
    return {
        "OTEL_EXPORTER_OTLP_ENDPOINT": url,
        "OTEL_TRACES_SAMPLER": "parentbased_always_on",
        "OTEL_METRIC_EXPORT_INTERVAL": str(METRIC_INTERVAL_MS),
    }


def inherited(variables: Mapping[str, str]) -> AbstractContextManager[None]:
    """Children that are started meanwhile have these, and know where the project's home is."""
    return environment({"FEEDLOOM_HOME": str(project_home()), **variables})


@contextmanager
def closed_port() -> Iterator[str]:
    """A port that refuses connections and that nobody else is given meanwhile."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"


def show(report: Report) -> None:
    """Rates, latencies and exits, side by side."""
    rows = []
    for name, found in report.figures[f"closed loop, concurrency {CONCURRENCY}"].items():
        exit_s = report.figures["exit_s"][name]
        cpu_ms = report.figures["cpu_ms_per_request"][name]["median"]
        rows.append(
            [name, f"{found['tokens_per_s']['median']:.0f}"]
            + [f"{found['ttft_ms'][quantile]:.1f}" for quantile in ("p50", "p95")]
            + [f"{cpu_ms:.1f}"]
            + [f"{exit_s[process]:.1f}" for process in ("worker", "client")]
        )
    table(
        f"concurrency {CONCURRENCY}",
        {
            "telemetry": "left",
            "tokens/s": "right",
            "TTFT p50 ms": "right",
            "p95": "right",
            "CPU ms a request": "right",
            "worker's exit, s": "right",
            "client's": "right",
        },
        rows,
    )


main = command(measure, name="bench_telemetry", description=__doc__, options=OPTIONS)

if __name__ == "__main__":
    main()
