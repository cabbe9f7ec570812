"""The threat model names every topic and component, and each control a test that there is."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from infra.contracts.catalogue import CATALOGUE
from infra.contracts.config_keys import CATALOGUE as SETTINGS
from infra.kafka.acls import COMPONENTS
from stream_workers.feedback import MOST, MOST_BY_ONE

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "security.md").read_text()
STRIDE = set("STRIDE")
RISKS = 10
HEADING = re.compile(r"^(#{2,3}) (.+)$", re.MULTILINE)
ENTRY = re.compile(r"^- \*\*([A-Z ]+)\*\* (.*)$")
FIELD = re.compile(r"^  (Control|Proof|Accepted|Operator): ?(.*)$")
TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


@dataclass(frozen=True)
class Entry:
    """One threat. ``fields``: what is said of it, by its first word."""

    part: str
    section: str
    kinds: frozenset[str]
    threat: str
    fields: dict[str, str]

    @property
    def tests(self) -> list[tuple[str, str]]:
        return TEST.findall(self.fields.get("Proof", ""))


def sections(page: str) -> Iterator[tuple[str, str, str]]:
    """Part, section and text of each section."""
    part = section = ""
    end = 0
    for found in HEADING.finditer(page):
        yield part, section, page[end : found.start()]
        end = found.end()
        if found[1] == "##":
            part, section = found[2], ""
        else:
            section = found[2]
    yield part, section, page[end:]


def entries(page: str) -> list[Entry]:
    """Every list item that begins with STRIDE's letters."""
    found: list[Entry] = []
    for part, section, text in sections(page):
        for item in re.split(r"\n(?=- \*\*)", text):
            lines = item.strip("\n").splitlines()
            if not lines or (begins := ENTRY.match(lines[0])) is None:
                continue
            threat, fields, current = begins[2], dict[str, str](), ""
            for line in lines[1:]:
                if (named := FIELD.match(line)) is not None:
                    current = named[1]
                    fields[current] = named[2]
                elif not line.startswith("  "):
                    break
                elif current:
                    fields[current] += f" {line.strip()}"
                else:
                    threat += f" {line.strip()}"
            found.append(Entry(part, section, frozenset(begins[1].split()), threat, fields))
    return found


def faults(entry: Entry) -> list[str]:
    """What an entry lacks."""
    found = []
    if not entry.kinds <= STRIDE:
        found.append("its letters are not STRIDE's")
    if "Accepted" in entry.fields:
        if len(entry.fields["Accepted"]) < 20:
            found.append("an accepted risk has a reason")
        if not entry.fields.get("Operator"):
            found.append("an accepted risk says what an operator can do")
        if "Control" in entry.fields or "Proof" in entry.fields:
            found.append("it is accepted or it has a control")
    else:
        if len(entry.fields.get("Control", "")) < 10:
            found.append("it has no control and is not accepted")
        if not entry.tests:
            found.append("no test proves its control")
    return found


@cache
def collected_in(path: str) -> frozenset[str]:
    """The tests that pytest collects from a file; none where it does not look."""
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]
    places = [*options["ini_options"]["testpaths"], "tests/drills"]
    file = ROOT / path
    if not file.name.startswith("test_") or not any(path.startswith(f"{one}/") for one in places):
        return frozenset()
    if not file.is_file():
        return frozenset()
    return frozenset(
        node.name
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("test_")
        and not any("skip" in ast.unparse(mark) for mark in node.decorator_list)
    )


ENTRIES = entries(PAGE)


def of(part: str) -> dict[str, list[Entry]]:
    found: dict[str, list[Entry]] = {}
    for entry in ENTRIES:
        if entry.part == part:
            found.setdefault(entry.section, []).append(entry)
    return found


@pytest.mark.parametrize("entry", ENTRIES, ids=[str(place) for place in range(len(ENTRIES))])
def test_every_threat_has_a_control_with_its_test_or_is_accepted(entry: Entry) -> None:
    assert faults(entry) == [], entry.threat


def test_every_test_that_is_named_is_collected() -> None:
    named = TEST.findall(PAGE)
    assert len(named) > 100
    assert [f"{path}::{name}" for path, name in named if name not in collected_in(path)] == []
    # What looks like a test and is not written as one would be passed over.
    assert PAGE.count("::") == len(named)


def test_every_component_is_gone_through_by_every_letter() -> None:
    found = of("Components")
    assert set(found) == {f"`{name}`" for name in COMPONENTS}
    for section, some in found.items():
        assert frozenset().union(*(one.kinds for one in some)) == STRIDE, section


def test_every_topic_is_there() -> None:
    named = {name for section in of("Topics") for name in re.findall(r"`([\w.*]+)`", section)}
    assert named == {spec.name for spec in CATALOGUE} | {"*.dlq"}


def test_every_risk_of_owasps_list_is_there() -> None:
    found = of("OWASP Top 10 for LLM applications, 2025")
    assert [section[:5] for section in found] == [f"LLM{n:02}" for n in range(1, RISKS + 1)]


def test_figures_of_the_page_are_those_of_the_code() -> None:
    for key, value in (
        ("trainer.max_principal_share", "0.1"),
        ("trainer.max_tenant_share", "1"),
        ("trainer.max_train_seconds", "1800"),
    ):
        assert f"{SETTINGS[key].default:g}" == value
        assert key in PAGE
    assert f"{MOST_BY_ONE} words of a principal and {MOST} in all" in PAGE
    for key in re.findall(r"`(?:feedloom config set )?(trainer\.\w+|rollout\.\w+)", PAGE):
        assert key in SETTINGS


def test_an_entry_that_lacks_something_is_told() -> None:
    """Else none of the above could fail."""
    page = """## Components
### `x`
- **S** No control at all.
- **T** A control and no test.
  Control: something is done about it.
- **Q** Accepted without a reason.
  Accepted: yes.
- **R** One that is good,
  in two lines.
  Control: something is done
  about it.
  Proof: `tests/unit/test_security_doc.py::test_every_topic_is_there`
"""
    *bad, good = entries(page)
    assert [len(faults(entry)) for entry in bad] == [2, 1, 3]
    assert faults(good) == []
    assert good.threat == "One that is good, in two lines."
    assert "test_every_topic_is_there" in collected_in(good.tests[0][0])
    assert collected_in("tests/unit/test_that_is_not_there.py") == frozenset()
    assert collected_in("tests/conftest.py") == frozenset()
