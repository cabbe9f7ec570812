"""Feedloom beside what else streams the same engine's tokens, in one run on one machine.

Seven sides serve the same model with the same engine arguments, to the same prompts and answer
lengths as `bench_overhead`, streaming: vLLM's `AsyncLLM` with its caller in the same process,
`vllm serve`, Ray Serve LLM, a FastStream worker and a plain Faust agent around `AsyncLLM`, Feedloom
over Kafka and Feedloom's gateway over HTTP. FastStream and Faust are written as their documentation
shows, with what it offers to run requests side by side (`max_workers`, `concurrency`), and stream
deltas over a Kafka topic to a client that puts the answers back together. Every engine runs in one
process on cores of its own with blocks of 32 tokens, as Feedloom's worker runs it: for the other
sides the benchmark does that from outside. Not Ray's, which on a CPU takes no executor but one with
a process more: it runs as it comes. Closed loop; while one side is loaded the others' processes are
stopped, and each first answers one request that does not count. Every answer must be whole. A quick
run starts the sides one after the other instead: it needs the memory of one.

CPU seconds a request are those of all of a side's processes, the engine's included; broker and
client (this process; `AsyncLLM` has its own within) apart. Lines are what a user of the tool writes
to get streaming answers: lines of the source that runs here, worker or server and client, without
blank lines, comments, docstrings and imports, and settings (arguments and variables), one each.

What the lines do not buy. `AsyncLLM`, `vllm serve`, Ray Serve LLM: an answer is lost with the
process or the connection that it streams on, and a request that waits is held in memory. Ray
restarts replicas and adds more. FastStream's `max_workers` goes with commits before the work: a
worker's death loses what it had taken. The Faust agent commits after the work and repeats it after
a death, with chunks that the client has seen; it does not wait for the broker to have a chunk. In
neither does a request keep its place among those of its key, have a deadline, a class or a quota,
get refused when there are too many, or stop when its caller has gone; their client reads every
partition of the chunks, whoever they are for, and does not resume. Feedloom sends an answer's first
token at once and then a chunk every 50 ms or 16 tokens; the others send each of vLLM's deltas,
which hold more than one token where the last was still being sent. Not measured: any of that, more
than one worker, a network.
"""

from __future__ import annotations

import inspect
import io
import tokenize
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import click

from benchmarks.gateway_side import Gateway
from benchmarks.harness import Report, command, table
from benchmarks.http_side import HttpSide
from benchmarks.models import embedded_model
from benchmarks.peers_sides import (
    InProcess,
    Metered,
    OverHttp,
    OverKafka,
    OwnServer,
    PeerSide,
    RayServe,
    StartedSide,
    faststream,
    faust,
    peers_python,
)
from benchmarks.sdk_side import SdkSide
from benchmarks.stage import ROOT, Stage
from benchmarks.turns import (
    WORKER_SETTINGS,
    Contestant,
    condensed,
    take_turns,
    tokens_ratio,
)

LOADS = {
    1: {"concurrency": 1, "ramp_s": 2.0, "window_s": 6.0},
    64: {"concurrency": 64, "ramp_s": 4.0, "window_s": 10.0},
}
QUICK_LOADS = {64: {"concurrency": 64, "ramp_s": 3.0, "window_s": 6.0}}
ROUNDS = 3

ASYNCLLM = "AsyncLLM"
VLLM_SERVE = "vllm serve"
RAY_SERVE = "Ray Serve LLM"
FASTSTREAM = "FastStream"
FAUST = "Faust"
KAFKA = "Feedloom, Kafka"
HTTP = "Feedloom, HTTP"
SIDES = (ASYNCLLM, VLLM_SERVE, RAY_SERVE, FASTSTREAM, FAUST, KAFKA, HTTP)
OURS = (KAFKA, HTTP)
CPU = ("side", "broker", "client")
STARTS: dict[str, Callable[[Stage, Path], StartedSide]] = {
    ASYNCLLM: InProcess,
    VLLM_SERVE: OwnServer,
    RAY_SERVE: RayServe,
    FASTSTREAM: faststream,
    FAUST: faust,
}

Part = Path | type
"""Source that somebody writes: a file, or a class of one."""


@dataclass(frozen=True)
class Written:
    """What a user of a tool writes."""

    worker: tuple[Part, ...] = ()
    client: tuple[Part, ...] = ()


def _file(name: str) -> Path:
    return ROOT / "benchmarks" / f"{name}.py"


WRITTEN = {
    ASYNCLLM: Written(worker=(_file("peers_engine"),)),
    VLLM_SERVE: Written(client=(HttpSide,)),
    RAY_SERVE: Written(worker=(_file("peers_ray"),), client=(HttpSide,)),
    FASTSTREAM: Written(
        worker=(_file("peers_engine"), _file("peers_faststream")), client=(_file("peers_topics"),)
    ),
    FAUST: Written(
        worker=(_file("peers_engine"), _file("peers_faust")), client=(_file("peers_topics"),)
    ),
    KAFKA: Written(client=(SdkSide,)),
    HTTP: Written(client=(HttpSide,)),
}
MEASURES: dict[str, Callable[[Mapping[str, Any]], float]] = {
    "tokens/s": lambda found: -found["tokens_per_s"]["median"],
    "TTFT p50": lambda found: found["ttft_ms"]["p50"],
    "TTFT p99": lambda found: found["ttft_ms"]["p99"],
    "ITL p50": lambda found: found["itl_ms"]["p50"],
    "ITL p99": lambda found: found["itl_ms"]["p99"],
    "CPU a request, broker included": lambda found: (
        found["cpu_s_per_request"]["side"] + found["cpu_s_per_request"]["broker"]
    ),
}
"""The lower, the better."""


def code_lines(source: str) -> int:
    """Lines that hold code: no blank ones, comments, docstrings or imports."""
    lines: set[int] = set()
    statement: list[tokenize.TokenInfo] = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.NEWLINE:
            if not _is_silent(statement):
                for part in statement:
                    lines.update(range(part.start[0], part.end[0] + 1))
            statement = []
        elif token.type not in _LAYOUT:
            statement.append(token)
    return len(lines)


_LAYOUT = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}


def _is_silent(statement: Sequence[tokenize.TokenInfo]) -> bool:
    """Whether it only imports, or is a text that stands alone."""
    return statement[0].string in ("import", "from") or all(
        token.type == tokenize.STRING for token in statement
    )


def lines_of(parts: Iterable[Part]) -> int:
    """Lines of code in all of them."""
    return sum(
        code_lines(part.read_text("utf-8") if isinstance(part, Path) else inspect.getsource(part))
        for part in parts
    )


def written_lines(name: str, settings: int) -> dict[str, int]:
    """What a user of the side writes, in lines."""
    parts = WRITTEN[name]
    found = {
        "worker": lines_of(parts.worker),
        "client": lines_of(parts.client),
        "settings": settings,
    }
    return {**found, "total": sum(found.values())}


def with_cpu(windows: Mapping[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """``turns.condensed`` with each side's CPU seconds a request, over all rounds' requests."""
    found = condensed(windows)
    for name, rounds in windows.items():
        requests = sum(window["requests"] for window in rounds)
        found[name]["cpu_s_per_request"] = {
            who: sum(w["cpu_s_per_request"][who] * w["requests"] for w in rounds) / requests
            for who in CPU
        }
    return found


def ahead(found: Mapping[str, Any]) -> dict[str, dict[str, list[str]]]:
    """By side of Feedloom's and measure: the peers that do better, the best first."""
    return {
        ours: {
            measure: sorted(
                (
                    name
                    for name in found
                    if name not in OURS and value(found[name]) < value(found[ours])
                ),
                key=lambda name, value=value: value(found[name]),  # type: ignore[misc]
            )
            for measure, value in MEASURES.items()
        }
        for ours in OURS
        if ours in found
    }


def versions() -> dict[str, str]:
    """Of the peers that have an environment of their own."""
    places = (peers_python().parent.parent / "lib").glob("python*/site-packages")
    found = {
        each.metadata["Name"]: each.version
        for each in distributions(path=[str(place) for place in places])
    }
    return {name: found[name] for name in ("faststream", "ray")}


class Feedloom:
    """A gateway and its worker, which both of Feedloom's sides use."""

    def __init__(self, stage: Stage, model: Path) -> None:
        self._place = stage.deployment("peers")
        self._place.publish_model(model)
        self._gateway = Gateway(self._place)
        self._gateway.freeze()

    def sides(self) -> dict[str, PeerSide]:
        """Both. Closing the second stops the processes."""
        return {KAFKA: OverKafka(self._place, self._gateway), HTTP: OverHttp(self._gateway)}

    def settings(self) -> dict[str, int]:
        """Variables of the worker; over HTTP those of the gateway, its port and a key too."""
        place = len(self._place.environment)
        worker = place + len(WORKER_SETTINGS)
        return {KAFKA: worker, HTTP: worker + place + 2}


class Run:
    """Sides as they are started, and what was measured of them."""

    def __init__(self, report: Report, stage: Stage, model: Path) -> None:
        self._report = report
        self._stage = stage
        self._model = model
        self._loads = QUICK_LOADS if report.quick else LOADS
        self._rounds = 1 if report.quick else ROUNDS
        self.windows: dict[int, dict[str, list[dict[str, Any]]]] = {n: {} for n in self._loads}
        self.settings: dict[str, int] = {}

    def start(self, names: Sequence[str]) -> Iterator[dict[str, PeerSide]]:
        """Those of these names, each once it serves; Feedloom's two together."""
        for name in names:
            if name not in OURS:
                self._report.say(f"starting {name}")
                side = STARTS[name](self._stage, self._model)
                self.settings[name] = side.settings
                yield {name: side}
        if any(name in OURS for name in names):
            self._report.say("starting Feedloom")
            feedloom = Feedloom(self._stage, self._model)
            self.settings |= feedloom.settings()
            yield {name: side for name, side in feedloom.sides().items() if name in names}

    def turns(self, sides: Mapping[str, PeerSide]) -> None:
        """Every load on these sides; then they are closed."""
        metered: dict[str, Contestant] = {
            name: Metered(side, self._stage) for name, side in sides.items()
        }
        for concurrency, load in self._loads.items():
            self._report.say(f"concurrency {concurrency}")
            self.windows[concurrency] |= take_turns(metered, load, self._rounds, self._report.say)
        for side in sides.values():
            side.close()


def measure(report: Report, only: tuple[str, ...]) -> None:
    """See the module."""
    names = [name for name in SIDES if not only or name in only]
    report.figures["versions"] = versions()
    model = embedded_model()
    with Stage() as stage:
        run = Run(report, stage, model)
        if report.quick:
            for some in run.start(names):
                run.turns(some)
        else:
            sides: dict[str, PeerSide] = {}
            for some in run.start(names):
                sides |= some
            run.turns(sides)
    lines = report.figures["lines"] = {
        name: written_lines(name, run.settings[name]) for name in names
    }
    for concurrency, windows in run.windows.items():
        found = with_cpu(windows)
        report.figures[f"concurrency {concurrency}"] = found
        report.figures[f"ahead, concurrency {concurrency}"] = ahead(found)
        for ours in (name for name in OURS if name in names):
            for peer in (name for name in names if name not in OURS):
                report.ratio(
                    f"{ours} / {peer}, tokens/s, concurrency {concurrency}",
                    tokens_ratio(windows, ours, peer),
                )
        show(f"concurrency {concurrency}", found, lines)


def show(title: str, found: Mapping[str, Any], lines: Mapping[str, Mapping[str, int]]) -> None:
    """One table of all sides."""
    rows = [
        [
            name,
            f"{side['tokens_per_s']['median']:.0f}",
            *(f"{side['ttft_ms'][quantile]:.0f}" for quantile in ("p50", "p95", "p99")),
            *(f"{side['itl_ms'][quantile]:.1f}" for quantile in ("p50", "p95", "p99")),
            *(f"{1000 * side['cpu_s_per_request'][who]:.0f}" for who in CPU),
            str(lines[name]["total"]),
        ]
        for name, side in found.items()
    ]
    heads = ["tokens/s", "TTFT p50", "p95", "p99", "ITL p50", "p95 ", "p99 "]
    heads += ["CPU ms", "broker's", "client's", "lines"]
    table(title, {"side": "left", **dict.fromkeys(heads, "right")}, rows)


main = command(
    measure,
    name="bench_peers",
    description=__doc__,
    options=[
        click.Option(
            ["--only"], multiple=True, type=click.Choice(SIDES), help="Not all of the sides."
        )
    ],
)

if __name__ == "__main__":
    main()
