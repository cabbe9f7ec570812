"""Alters the pure core in every small way that mutmut knows, and asks its unit tests each time.

``make mutants`` runs it. It prints a table of modules, writes results.json and the same table into
docs/proof.md, and fails where tests notice or reach less than core.toml demands.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from tests.mutation import report, tree, verdicts
from tests.mutation.verdicts import KILLED, SLOW, UNREACHED

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
PLACE = ROOT / ".feedloom" / "mutation"
PYTHON = ROOT / ".feedloom" / "tools" / "mutation" / "bin" / "python"
MEMORY_BYTES = 3 * 2**30
"""An altered loop may never end, and what it gathers must not take the machine with it."""


@dataclass(frozen=True, kw_only=True)
class Core:
    """core.toml. ``tests`` of each module by its path, ``without`` in pytest's names."""

    tests: Mapping[str, tuple[str, ...]]
    samples: Mapping[str, int]
    without: tuple[str, ...]
    killed: float
    covered: float
    seed: int


def load_core(path: Path = HERE / "core.toml") -> Core:
    """What is the core, and what is demanded of it."""
    found = tomllib.loads(path.read_text())
    return Core(
        tests={
            one["path"]: tuple(f"tests/unit/{name}.py" for name in one["tests"])
            for one in found["module"]
        },
        samples={one["path"]: one["sample"] for one in found["module"] if "sample" in one},
        without=tuple(f"tests/unit/{name}" for name in found["without"]["tests"]),
        killed=found["need"]["killed"],
        covered=found["need"]["covered"],
        seed=found["need"]["seed"],
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: whether the core is proven as core.toml demands."""
    parser = argparse.ArgumentParser(description=__doc__, prog="make mutants ARGS=")
    parser.add_argument("modules", nargs="*", help="only these")
    parser.add_argument("--coverage", action="store_true", help="only measure the lines reached")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="leave out what was killed before: for a run that was broken off, or more tests",
    )
    asked = parser.parse_args(arguments)
    core = load_core()
    modules = asked.modules or list(core.tests)
    before = verdicts.harvest(PLACE, modules) if asked.resume else {}
    tests = list(dict.fromkeys(test for module in modules for test in core.tests[module]))
    place = PLACE / "tree"
    tree.make(place, ROOT, modules=modules, tests=tests, without=core.without)
    verdicts.remember(place, ROOT, modules)
    found = _coverage(place, modules, tests, core.without)
    if not asked.coverage:
        tree.open_properties(place, modules)
        found = _mutants(place, found, core, before)
    results = report.Results(
        tool=f"mutmut {version('mutmut')}",
        python=platform.python_version(),
        seed=core.seed,
        modules=tuple(found),
    )
    if not asked.coverage:
        report.save(results, list(core.tests))
    problems = report.problems(found, core.killed, core.covered)
    sys.stdout.write("\n".join([report.table(found), *_shown(found), *problems, ""]))
    return 1 if problems else 0


def version(tool: str) -> str:
    """Of one of the tools."""
    code = f"from importlib.metadata import version; print(version({tool!r}))"
    return _run(["-c", code], cwd=ROOT).stdout.strip()


def _shown(modules: Iterable[report.Module]) -> Iterator[str]:
    for module in modules:
        for one in module.survivors:
            yield f"\n{module.path} {one.function}\n{one.before}\n{one.after}"


def _environment() -> dict[str, str]:
    """The tools see the project's own environment beside theirs."""
    return os.environ | {"PYTHONPATH": sysconfig.get_path("purelib"), "PYTHONHASHSEED": "0"}


def _bounded() -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    os.nice(10)


def _run(
    words: Sequence[str], *, cwd: Path, shown: bool = False
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(PYTHON), *words],
        cwd=cwd,
        check=False,
        text=True,
        stdout=None if shown else subprocess.PIPE,
        stderr=None if shown else subprocess.STDOUT,
        env=_environment(),
        preexec_fn=_bounded,
    )


def _coverage(
    place: Path, modules: Sequence[str], tests: Sequence[str], without: Sequence[str]
) -> list[report.Module]:
    """Lines with code of each module, and how many of them the tests reach."""
    words = ["-m", "coverage", "run", f"--include={','.join(modules)}", "-m", "pytest", "-q", "-x"]
    ended = _run([*words, *tests, *(f"--deselect={test}" for test in without)], cwd=place)
    if ended.returncode:
        raise SystemExit(f"the unaltered core fails its tests:\n{ended.stdout}")
    _run(["-m", "coverage", "json", "-q", "-o", "coverage.json"], cwd=place)
    files: dict[str, Any] = json.loads((place / "coverage.json").read_text())["files"]
    return [
        report.Module(
            path=module,
            lines=files[module]["summary"]["num_statements"],
            covered=files[module]["summary"]["covered_lines"],
        )
        for module in modules
    ]


def _mutants(
    place: Path, found: Sequence[report.Module], core: Core, before: Mapping[str, Mapping[str, int]]
) -> list[report.Module]:
    # It makes all mutants first, and ends with an error as none has that name.
    _run(["-m", "mutmut", "run", "--max-children", "1", "none"], cwd=place)
    drawn: dict[str, list[str]] = {}
    for module in found:
        own = sorted(_statuses(place, module.path))
        most = core.samples.get(module.path, len(own))
        drawn[module.path] = random.Random(core.seed).sample(own, min(most, len(own)))
    left = [
        name
        for module, names in drawn.items()
        for name in names
        if name not in before.get(module, {})
    ]
    run = ["-m", "mutmut", "run", "--max-children", "1", *left]
    if left and _run(run, cwd=place, shown=True).returncode:
        raise SystemExit("mutmut failed")
    return [
        _counted(place, module, drawn[module.path], before.get(module.path, {})) for module in found
    ]


def _statuses(place: Path, module: str) -> dict[str, int | None]:
    """By name of the mutant, how its tests ended; ``None``: they did not run."""
    meta = json.loads((place / "mutants" / f"{module}.meta").read_text())
    found: dict[str, int | None] = meta["exit_code_by_key"]
    return found


def _counted(
    place: Path, module: report.Module, drawn: Sequence[str], before: Mapping[str, int]
) -> report.Module:
    statuses = _statuses(place, module.path)
    ran = {name: before.get(name, statuses[name]) for name in drawn}
    odd = {status for status in ran.values() if status not in {*KILLED, *SLOW, 0, *UNREACHED}}
    if odd:
        raise SystemExit(f"{module.path}: tests ended with {odd}, which nobody can judge")
    alive = [name for name, status in ran.items() if status == 0 or status in UNREACHED]
    return msgspec.structs.replace(
        module,
        mutants=len(statuses),
        tried=len(ran),
        killed=len(ran) - len(alive),
        slow=sum(status in SLOW for status in ran.values()),
        unreached=sum(status in UNREACHED for status in ran.values()),
        survivors=tuple(_survivors(place, alive)),
    )


_SHOW = """
import json, sys
from mutmut.mutation.diff_apply import get_diff_for_mutant
print(json.dumps({name: get_diff_for_mutant(name) for name in sys.argv[1:]}))
"""


def _survivors(place: Path, names: Sequence[str]) -> Iterator[report.Survivor]:
    if not names:
        return
    diffs: dict[str, str] = json.loads(_run(["-c", _SHOW, *names], cwd=place).stdout)
    for name, diff in diffs.items():
        lines = [line for line in diff.splitlines() if line[:3] not in ("+++", "---")]
        mangled, _, _ = name.rpartition(".")[2].rpartition("__mutmut_")
        yield report.Survivor(
            function=mangled.removeprefix("x_").removeprefix("xǁ").replace("ǁ", "."),
            before="\n".join(line[1:].strip() for line in lines if line[:1] == "-"),
            after="\n".join(line[1:].strip() for line in lines if line[:1] == "+"),
        )


if __name__ == "__main__":
    sys.exit(main())
