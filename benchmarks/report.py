"""Runs every benchmark, keeps their JSON under ``benchmarks/results``, writes the page of figures.

Each runs in a process of its own, one after the other. ``docs/performance.md`` is rewritten
between its markers, ``docs/performance.svg`` whole. A quick run writes neither: it prints.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

from benchmarks.harness import UNAVAILABLE, console, print_ratios
from benchmarks.render import chart, page
from benchmarks.stage import ROOT
from infra.tether import tethered

ORDER = (
    "bench_overhead",
    "bench_http_peer",
    "bench_gateway",
    "bench_peers",
    "bench_gateway_soak",
    "bench_dispatch",
    "bench_scale",
    "bench_backlog",
    "bench_outcomes",
    "bench_classes",
    "bench_affinity",
    "bench_cancellation",
    "bench_swap",
    "bench_ab",
    "bench_telemetry",
    "bench_pile",
    "bench_train",
    "bench_mfu",
    "profile_dispatch",
)
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "performance.md"
PLOT = ROOT / "docs" / "performance.svg"


def run_all(names: tuple[str, ...], folder: Path, *, quick: bool) -> list[str]:
    """Run each; returns those that broke. An older file of one that broke stays."""
    broken = []
    for name in names:
        arguments = ["--json", str(folder / f"{name}.json"), *(["--quick"] if quick else [])]
        done = subprocess.run(
            tethered([sys.executable, "-m", f"benchmarks.{name}", *arguments]),
            cwd=ROOT,
            check=False,
        )
        if done.returncode == 130:
            raise KeyboardInterrupt
        if done.returncode not in (0, UNAVAILABLE):
            broken.append(name)
    return broken


def load(folder: Path) -> dict[str, dict[str, Any]]:
    """The JSON documents of a folder, in order."""
    paths = [folder / f"{name}.json" for name in ORDER]
    return {path.stem: json.loads(path.read_text("utf-8")) for path in paths if path.is_file()}


def write_page(documents: dict[str, dict[str, Any]]) -> None:
    """Bring page and plot up to date."""
    unmeasured = [name for name in ORDER if name not in documents]
    PAGE.write_text(page(PAGE.read_text("utf-8"), documents, unmeasured), "utf-8")
    drawn = chart(documents)
    if drawn is not None:
        PLOT.write_text(drawn, "utf-8")


@click.command()
@click.option("--quick", is_flag=True, help="Short runs; prints, and changes no file.")
@click.option("--only", multiple=True, type=click.Choice(ORDER), help="Not all of them.")
@click.option("--render", is_flag=True, help="Run nothing: write the page from the kept files.")
def main(quick: bool, only: tuple[str, ...], render: bool) -> None:
    """Run the benchmarks and write docs/performance.md. Status 2 if one could not be run."""
    names = () if render else tuple(name for name in ORDER if not only or name in only)
    broken: list[str] = []
    try:
        if quick:
            with tempfile.TemporaryDirectory(prefix="feedloom-bench-results-") as folder:
                broken = run_all(names, Path(folder), quick=True)
                documents = load(Path(folder))
        else:
            RESULTS.mkdir(exist_ok=True)
            broken = run_all(names, RESULTS, quick=False)
            documents = load(RESULTS)
            write_page(documents)
            console.print(f"written: {PAGE.relative_to(ROOT)}, {PLOT.relative_to(ROOT)}")
    except KeyboardInterrupt:
        sys.exit(130)
    for document in documents.values():
        if document["ratios"]:
            print_ratios(document)
    if broken:
        console.print(f"not measured, the run broke: {', '.join(broken)}")
        sys.exit(2)


if __name__ == "__main__":
    main()
