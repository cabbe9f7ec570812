"""Where a worker's time goes when its engine takes none: py-spy on the load of ``bench_dispatch``.

Not a ratio: shares of the samples in which a thread of the worker holds the interpreter, by the
part whose code is nearest to the top of the stack (C code counts to its caller). py-spy is
installed into a throw-away environment; without a package index this ends with status 2.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from benchmarks.bench_dispatch import start_side
from benchmarks.harness import Broken, Report, command, table
from benchmarks.processes import cpu_seconds
from benchmarks.records import publish_requests, request_of
from benchmarks.stage import Stage, wait_until
from infra.contracts.catalogue import CHUNKS

RATE_HZ = 200
PARTS: tuple[tuple[str, str], ...] = (
    (r"stream_workers/(engine_memory|continuation|sampling|engine)\.py", "the in-memory engine"),
    (r"/opentelemetry/|/main/observability/|observability/\w+\.py", "telemetry"),
    (r"infra/contracts/", "decoding and encoding events"),
    (r"stream_workers/(handler|running)\.py", "request handler"),
    (
        r"stream_workers/(dispatcher|jobs|admission|slack|offsets)\.py",
        "dispatcher, admission, offsets",
    ),
    (r"stream_workers/(coalescer|sink)\.py", "chunks and records (sink, coalescer)"),
    (r"stream_workers/(outcomes|transactions|member_sender)\.py", "outcomes, transactions"),
    (r"stream_workers/consumer\.py", "consumer"),
    (r"site-packages/aiokafka/", "aiokafka"),
    (r"site-packages/(faust|mode)/", "Faust"),
    (r"site-packages/kafka/", "kafka-python (registry, cancellations)"),
    (r"/asyncio/|uvloop", "event loop"),
)
OTHER = "other"


def measure(report: Report) -> None:
    """See the module."""
    count, seconds = (6_000, 3) if report.quick else (60_000, 12)
    with Stage() as stage, tempfile.TemporaryDirectory(prefix="feedloom-py-spy-") as folder:
        spy = install(Path(folder))
        place = stage.deployment("profile")
        place.publish_model()
        publish_requests(place.bus, (request_of(number) for number in range(count)))
        child = start_side(place, "worker", "profile")
        wait_until(
            lambda: place.written(CHUNKS.name) > count / 20, what="first answers", timeout_s=60
        )
        before = place.written(CHUNKS.name), cpu_seconds(child.pid)
        raw = Path(folder) / "stacks.txt"
        spied = [str(spy), "record", "--pid", str(child.pid), "--output", str(raw), "--gil"]
        spied += ["--duration", str(seconds), "--rate", str(RATE_HZ), "--format", "raw"]
        spied += ["--full-filenames", "--threads"]
        done = subprocess.run(spied, capture_output=True, text=True, check=False)
        after = place.written(CHUNKS.name), cpu_seconds(child.pid)
        if done.returncode != 0 or not raw.is_file():
            raise Broken(f"py-spy: {done.stderr[-500:]}")
        stacks = raw.read_text("utf-8")
        stage.stop(child, 5.0)
    shares, functions, samples = summarize(stacks)
    cpu_us = 1e6 * (after[1] - before[1]) / max(1, after[0] - before[0])
    report.figures = {
        "samples": samples,
        "cpu_us_per_request_while_profiled": cpu_us,
        "shares": shares,
        "functions": functions,
    }
    table(
        f"{samples} samples; {cpu_us:.0f} us CPU a request while profiled",
        {"part": "left", "share": "right"},
        [[part, f"{100 * share:.1f}%"] for part, share in shares.items()],
    )


def install(folder: Path) -> Path:
    """py-spy in an environment of its own; returns the program."""
    steps = (
        [sys.executable, "-m", "venv", str(folder / "venv")],
        [str(folder / "venv/bin/python"), "-m", "pip", "install", "--quiet", "py-spy"],
    )
    for step in steps:
        done = subprocess.run(step, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise Broken(f"py-spy cannot be installed: {done.stderr[-500:]}")
    return folder / "venv" / "bin" / "py-spy"


def summarize(stacks: str) -> tuple[dict[str, float], dict[str, float], int]:
    """Shares by part, inclusive shares of this project's functions, and the number of samples."""
    parts: Counter[str] = Counter()
    functions: Counter[str] = Counter()
    total = 0
    for line in stacks.splitlines():
        stack, _, number = line.rpartition(" ")
        frames, count = stack.split(";"), int(number)
        total += count
        parts[part_of(frames)] += count
        own = {named(frame) for frame in frames if "stream_workers/" in frame}
        for function in own:
            functions[function] += count
    return (
        {part: count / total for part, count in parts.most_common()},
        {name: count / total for name, count in functions.most_common(25)},
        total,
    )


def part_of(frames: list[str]) -> str:
    """The part of the frame nearest to the top that belongs to one."""
    for frame in reversed(frames):
        for pattern, part in PARTS:
            if re.search(pattern, frame):
                return part
    return OTHER


def named(frame: str) -> str:
    """``run (stream_workers/handler.py)``, without the line."""
    function, _, place = frame.partition(" (")
    return f"{function} ({place[place.index('stream_workers/') :].partition(':')[0].rstrip(')')})"


main = command(measure, name="profile_dispatch", description=__doc__)

if __name__ == "__main__":
    main()
