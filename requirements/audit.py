"""Asks pip-audit whether anything that is pinned has a known vulnerability.

It resolves nothing: every pin and hash is in the files already. Three things may come out, and they
are told apart: nothing found, something found, or *not audited*, where the source of the data does
not answer. pip-audit by itself reports the last as "no known vulnerabilities". A release that is
known to be vulnerable is therefore asked about first: where that is not found, nothing is.

Exit status 0: nothing found, or not audited; 1: something found; 3: not audited, with --required.
Knows nothing of what the packages do.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
KNOWN = "jinja2==2.10"
"""Has CVE-2019-10906, in every database."""
TIMEOUT_S = 900


class NotAudited(Exception):
    """There is no data; the message says what was seen instead."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One vulnerability of one pinned release. ``names``: its id and what others call it."""

    package: str
    names: frozenset[str]
    fixed_in: tuple[str, ...]

    def __str__(self) -> str:
        mended = ", ".join(self.fixed_in) or "no release"
        return f"{self.package}: {', '.join(sorted(self.names))} (mended in {mended})"


@dataclass(frozen=True, kw_only=True)
class Report:
    """What pip-audit says of one file. ``skipped``: packages that it could not ask about."""

    findings: tuple[Finding, ...]
    skipped: tuple[str, ...]
    asked: int


def read(output: str) -> Report:
    """pip-audit's JSON. Raises NotAudited for anything else."""
    try:
        packages = json.loads(output)["dependencies"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise NotAudited("pip-audit printed no report") from error
    findings = [
        Finding(
            package=f"{each['name']}=={each['version']}",
            names=frozenset({one["id"], *one["aliases"]}),
            fixed_in=tuple(one["fix_versions"]),
        )
        for each in packages
        for one in each.get("vulns", ())
    ]
    skipped = tuple(each["name"] for each in packages if "skip_reason" in each)
    return Report(findings=tuple(findings), skipped=skipped, asked=len(packages))


def ask(requirements: Path) -> Report:
    """Run pip-audit on one file. Raises NotAudited when it cannot say."""
    command = [sys.executable, "-m", "pip_audit", "--format", "json", "--progress-spinner", "off"]
    command += ["--disable-pip", "--no-deps", "--requirement", str(requirements)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=TIMEOUT_S
        )
    except subprocess.TimeoutExpired as error:
        raise NotAudited(f"pip-audit did not end in {TIMEOUT_S} s") from error
    if not done.stdout.strip():
        raise NotAudited((done.stderr.strip().splitlines() or ["pip-audit printed nothing"])[-1])
    return read(done.stdout)


def check_source() -> None:
    """Raises NotAudited unless the release that is known to be vulnerable is found to be."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as stream:
        stream.write(f"{KNOWN}\n")
        stream.flush()
        if not ask(Path(stream.name)).findings:
            raise NotAudited(f"the source of the data does not know that {KNOWN} is vulnerable")


def ignored(text: str) -> dict[str, str]:
    """Ids and reasons. Raises ValueError for one without a reason."""
    found: dict[str, str] = tomllib.loads(text).get("ignore", {})
    for name, reason in found.items():
        if not isinstance(reason, str) or len(reason.split()) < 3:
            raise ValueError(f"{name} is ignored: say why")
    return found


def faults(reports: Sequence[Report], ignore: dict[str, str]) -> list[str]:
    """A line for each finding not let pass, each package not asked about, each stale id."""
    findings = {finding for report in reports for finding in report.findings}
    lines = sorted(str(one) for one in findings if not one.names & ignore.keys())
    skipped = sorted({name for report in reports for name in report.skipped})
    lines += [f"{name}: the source of the data does not know it" for name in skipped]
    named = {name for finding in findings for name in finding.names}
    lines += [f"{name} is ignored, and was not found" for name in sorted(ignore.keys() - named)]
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Audit every file of requirements; see the module for the status."""
    parser = argparse.ArgumentParser(prog="audit", description="Audit requirements/*.txt.")
    parser.add_argument("--required", action="store_true", help="fail where there is no data")
    options = parser.parse_args(arguments)
    files = sorted(FOLDER.glob("*.txt"))
    ignore = ignored((FOLDER / "audit.toml").read_text())
    try:
        check_source()
        reports = [ask(file) for file in files]
    except NotAudited as error:
        sys.stderr.write(f"NOT AUDITED: {error}. No statement is made about vulnerabilities.\n")
        return 3 if options.required else 0
    found = faults(reports, ignore)
    sys.stderr.writelines(f"{line}\n" for line in found)
    asked = sum(report.asked for report in reports)
    sys.stdout.write(
        f"{asked} pins in {len(files)} files: {len(found)} faults, {len(ignore)} ignored\n"
    )
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
