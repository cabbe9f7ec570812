"""What the audit of the pins makes of pip-audit's answers. Nothing here asks a network."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parent.parent.parent / "requirements"


@pytest.fixture(scope="module")
def audit() -> ModuleType:
    spec = importlib.util.spec_from_file_location("feedloom_audit", FOLDER / "audit.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def answer(*packages: dict[str, Any]) -> str:
    return json.dumps({"dependencies": list(packages), "fixes": []})


CLEAN = {"name": "click", "version": "8.4.2", "vulns": []}
BAD = {
    "name": "jinja2",
    "version": "2.10",
    "vulns": [{"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["2.11"], "description": ""}],
}
UNKNOWN = {"name": "uv", "skip_reason": "Dependency not found on PyPI"}


def test_a_finding_is_a_fault_until_it_is_ignored_by_any_of_its_names(audit: ModuleType) -> None:
    report = audit.read(answer(CLEAN, BAD))
    assert report.asked == 2
    assert audit.faults([report], {}) == ["jinja2==2.10: CVE-1, PYSEC-1 (mended in 2.11)"]
    assert audit.faults([report, report], {"CVE-1": "not reached from here"}) == []


def test_a_package_that_was_not_asked_about_is_a_fault(audit: ModuleType) -> None:
    (line,) = audit.faults([audit.read(answer(UNKNOWN))], {})
    assert line.startswith("uv: ")


def test_what_is_ignored_must_be_there(audit: ModuleType) -> None:
    (line,) = audit.faults([audit.read(answer(CLEAN))], {"CVE-1": "not reached from here"})
    assert line == "CVE-1 is ignored, and was not found"


def test_each_that_is_ignored_has_a_reason(audit: ModuleType) -> None:
    audit.ignored((FOLDER / "audit.toml").read_text())
    with pytest.raises(ValueError, match="CVE-1"):
        audit.ignored('[ignore]\nCVE-1 = ""')


@pytest.mark.parametrize("output", ["", "ERROR: no network", "[]", answer()[:-2]])
def test_anything_but_a_report_is_no_audit(audit: ModuleType, output: str) -> None:
    with pytest.raises(audit.NotAudited):
        audit.read(output)


def test_a_source_that_knows_nothing_is_told_apart_from_nothing_found(
    audit: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(audit, "ask", lambda _: audit.read(answer(CLEAN)))
    assert audit.main([]) == 0
    assert capsys.readouterr().err.startswith("NOT AUDITED: ")
    assert audit.main(["--required"]) == 3


def test_every_file_of_pins_is_audited(
    audit: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []

    def ask(file: Path) -> Any:
        asked.append(file.name)
        return audit.read(answer(CLEAN if file.parent == FOLDER else BAD))

    monkeypatch.setattr(audit, "ask", ask)
    assert audit.main(["--required"]) == 0
    assert asked[1:] == sorted(path.name for path in FOLDER.glob("*.txt"))
    assert f"{len(asked) - 1} pins in {len(asked) - 1} files: 0 faults" in capsys.readouterr().out
    monkeypatch.setattr(audit, "ask", lambda _: audit.read(answer(BAD)))
    assert audit.main([]) == 1
    assert "jinja2==2.10" in capsys.readouterr().err
