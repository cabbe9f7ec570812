"""Alerts: promtool's own tests of them, their runbooks, and what faults they must be raised by."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from observability import alerts, generated
from observability.alerts.model import Alert, as_yaml, given
from observability.alerts.objectives import PAGE, TICKET, WINDOWS
from observability.alerts.rules import ALERTS
from observability.prometheus_names import label_name
from observability.promql import UnknownSeriesError

ROOT = generated.FOLDER.parents[2]
OPERATIONS = ROOT / "docs" / "operations"
FOLDER = generated.FOLDER / "prometheus"
NAMES = sorted({alert.name for alert in ALERTS})


def _promtool(*arguments: str) -> str:
    program = shutil.which("promtool")
    assert program, "no promtool on PATH; on Debian or Ubuntu: apt-get install prometheus"
    done = subprocess.run(
        [program, *arguments],
        cwd=FOLDER,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_the_files_are_what_the_code_says() -> None:
    assert generated.stale(alerts.files()) == []


def test_prometheus_takes_its_configuration_and_the_rules() -> None:
    assert "SUCCESS" in _promtool("check", "config", "prometheus.yaml")


def test_alerts_fire_when_they_should_and_at_no_other_time() -> None:
    assert "SUCCESS" in _promtool("test", "rules", "rules_test.yaml")


@pytest.mark.parametrize("name", NAMES)
def test_an_alert_has_a_case_that_raises_it_and_one_that_does_not(name: str) -> None:
    cases = [case for alert in ALERTS if alert.name == name for case in alert.cases]
    assert any(case.fires for case in cases)
    assert any(not case.fires for case in cases)
    raised = {fired.severity for case in cases for fired in case.fires if fired.severity}
    severities = {alert.severity for alert in ALERTS if alert.name == name}
    assert len(severities) == 1 or raised


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: f"{alert.name} {alert.severity}")
def test_a_description_uses_labels_that_the_query_has(alert: Alert) -> None:
    used = set(re.findall(r"\$labels\.(\w+)", alert.description))
    assert used <= alert.query.labels
    assert alert.description.endswith(".")
    assert not alert.summary.endswith(".")


def test_burn_rates_are_the_workbooks() -> None:
    # Google SRE workbook, table 5-8: parts of a budget of 30 days, in each long window.
    hours = {"1h": 1, "6h": 6, "1d": 24, "3d": 72}
    spent = {long: factor * hours[long] / 720 for factor, long, _ in (*PAGE, *TICKET)}
    assert spent == pytest.approx({"1h": 0.02, "6h": 0.05, "1d": 0.1, "3d": 0.1})
    assert {window for _, *both in (*PAGE, *TICKET) for window in both} == set(WINDOWS)


def test_a_case_cannot_be_given_what_nobody_records() -> None:
    with pytest.raises(UnknownSeriesError):
        given("feedloom.worker.lag", {"feedloom.tenant": "a"}, "1x5")


# Runbooks


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: f"{alert.name} {alert.severity}")
def test_an_alert_has_a_runbook(alert: Alert) -> None:
    text = (ROOT / alert.runbook_url).read_text()
    assert text.startswith(f"# {alert.name}\n")
    for heading in (
        "## What fired",
        "## What users notice",
        "## How to see it",
        "## Likely causes",
        "## What to do",
        "## When it is over",
    ):
        assert f"\n{heading}\n" in text, heading


def test_every_runbook_is_of_an_alert_and_in_the_index() -> None:
    pages = {path.stem for path in OPERATIONS.glob("*.md")} - {"README"}
    assert pages == {alert.runbook for alert in ALERTS}
    index = (OPERATIONS / "README.md").read_text()
    for alert in ALERTS:
        assert f"[{alert.name}]({alert.runbook}.md)" in index


def test_each_of_ten_faults_raises_an_alert_that_there_is() -> None:
    index = (OPERATIONS / "README.md").read_text()
    drills = index.partition("\n## Drills\n")[2]
    rows = re.findall(r"^\| \d+ \| ([^|]+) \| [^|]+ \| ([^|]+) \|", drills, re.MULTILINE)
    assert len(rows) == 10
    for fault, raised in rows:
        named = re.findall(r"Feedloom\w+", raised)
        assert named, fault
        assert set(named) <= set(NAMES), fault


QUERY = re.compile(r"```promql\n(.*?)```", re.DOTALL)


@pytest.mark.parametrize("page", sorted({alert.runbook for alert in ALERTS}))
def test_the_queries_of_a_runbook_are_promql(page: str, tmp_path: Path) -> None:
    text = (OPERATIONS / f"{page}.md").read_text()
    found = [line for block in QUERY.findall(text) for line in block.splitlines() if line]
    assert found, "a runbook gives the queries to look with"
    rules = [{"record": f"q{number}", "expr": line} for number, line in enumerate(found)]
    path = tmp_path / "queries.yaml"
    path.write_text(as_yaml({"groups": [{"name": "runbook", "rules": rules}]}))
    _promtool("check", "rules", str(path))
    known = _recorded()
    for line in found:
        asked = set(re.findall(r"\b((?:feedloom|gen_ai|messaging|http|otelcol)[\w:]+)", line))
        assert asked <= known, asked - known


def _recorded() -> set[str]:
    from observability import collector
    from observability.alerts.objectives import recordings
    from observability.instruments import CATALOGUE
    from observability.prometheus_names import series_names

    own = {name for metric in CATALOGUE.values() for name in series_names(metric)}
    labels = {label_name(one) for metric in CATALOGUE.values() for one in metric.attributes}
    foreign = {
        source.name
        for group in (collector.ACCEPTED, collector.REFUSED, collector.SEND_FAILED)
        for source in group.values()
    }
    return (
        own
        | labels
        | foreign
        | set(recordings())
        | {collector.QUEUE_SIZE.name, collector.QUEUE_CAPACITY.name, collector.TRACES_EVICTED.name}
    )


# YAML


@pytest.mark.parametrize(
    "value",
    [
        {"a": "b", "c": {"d": ["e", {"f": "g", "h": "2m"}]}, "i": "1x5"},
        {"expr": 'sum(x{y="z"}) > 1\nand\nb', "empty": [], "text": "with: colon # and hash"},
        {"list": ["1", "true words", "null", "on", "2", "-1"], "number": 3},
        {"nested": [{"deep": [{"x": 'quoted "this"'}]}]},
    ],
)
def test_yaml_reads_back_as_it_was_written(value: object) -> None:
    assert yaml.safe_load(as_yaml(value)) == value
