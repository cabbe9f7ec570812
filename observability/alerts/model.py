"""An alert as data, the cases that prove it, and the files that Prometheus and promtool load."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from observability.prometheus_names import Foreign, label_name
from observability.promql import Part, Query, equal, select

Severity = Literal["page", "ticket"]
"""Somebody is woken, or somebody looks on the next working day."""

RUNBOOKS = "docs/operations"
RECORDING_GROUP = "feedloom-objectives"
ALERTING_GROUP = "feedloom-alerts"


@dataclass(frozen=True, kw_only=True)
class Fired:
    """An alert that a case raises: its labels beside the severity, and its description."""

    says: str
    labels: Mapping[str, str] = field(default_factory=dict)
    severity: Severity | None = None


@dataclass(frozen=True, kw_only=True)
class Case:
    """What Prometheus reads a minute apart, and which alerts of the name fire at ``at``."""

    name: str
    given: Sequence[tuple[str, str]]
    at: str
    fires: Sequence[Fired] = ()


@dataclass(frozen=True, kw_only=True)
class Alert:
    """``lasting``: how long the query must find it. ``description``: a Prometheus template.

    ``cases``: of all alerts of the name, which differ in severity.
    """

    name: str
    runbook: str
    query: Query
    severity: Severity
    summary: str
    description: str
    lasting: str = "0m"
    cases: tuple[Case, ...] = ()

    @property
    def runbook_url(self) -> str:
        """From the root of the repository."""
        return f"{RUNBOOKS}/{self.runbook}.md"


def given(
    source: str | Foreign, attributes: Mapping[str, str], values: str, part: Part = ""
) -> tuple[str, str]:
    """A series of a case; ``values`` in promtool's notation. Raises UnknownSeriesError."""
    bucket = {key: value for key, value in attributes.items() if key == "le"}
    own = {key: value for key, value in attributes.items() if key != "le"}
    series = select(source, {key: equal(value) for key, value in own.items()})
    return series.text(part, also=[(key, equal(value)) for key, value in bucket.items()]), values


def rule_file(recordings: Mapping[str, Query], alerts: Iterable[Alert]) -> dict[str, object]:
    """Prometheus' rule file."""
    return {
        "groups": [
            {
                "name": RECORDING_GROUP,
                "rules": [
                    {"record": name, "expr": query.text} for name, query in recordings.items()
                ],
            },
            {"name": ALERTING_GROUP, "rules": [_rule(alert) for alert in alerts]},
        ]
    }


def _rule(alert: Alert) -> dict[str, object]:
    return {
        "alert": alert.name,
        "expr": alert.query.text,
        "for": alert.lasting,
        "labels": {"severity": alert.severity},
        "annotations": _annotations(alert, alert.description),
    }


def _annotations(alert: Alert, description: str) -> dict[str, str]:
    return {
        "summary": alert.summary,
        "description": description,
        "runbook_url": alert.runbook_url,
    }


def test_file(alerts: Sequence[Alert], rules: str) -> dict[str, object]:
    """promtool's file of unit tests."""
    severities = {(alert.name, alert.severity): alert for alert in alerts}
    return {
        "rule_files": [rules],
        "evaluation_interval": "1m",
        # In any other order an alert may read what was recorded a minute before.
        "group_eval_order": [RECORDING_GROUP, ALERTING_GROUP],
        "tests": [
            {
                "name": f"{alert.name}: {case.name}",
                "interval": "1m",
                "input_series": [{"series": text, "values": values} for text, values in case.given],
                "alert_rule_test": [
                    {
                        "eval_time": case.at,
                        "alertname": alert.name,
                        "exp_alerts": [
                            _expected(
                                severities[alert.name, fired.severity or alert.severity], fired
                            )
                            for fired in case.fires
                        ],
                    }
                ],
            }
            for alert in alerts
            for case in alert.cases
        ],
    }


def _expected(alert: Alert, fired: Fired) -> dict[str, object]:
    labels = {label_name(key): value for key, value in fired.labels.items()}
    return {
        "exp_labels": {"severity": alert.severity, **labels},
        "exp_annotations": _annotations(alert, fired.says),
    }


_PLAIN = re.compile(r"[A-Za-z_/][A-Za-z0-9_./:-]*[A-Za-z0-9_.]")
_KEYWORDS = frozenset(("null", "true", "false", "yes", "no", "on", "off"))


def as_yaml(value: object) -> str:
    """Mappings, sequences and texts, as a person would write them."""
    return "\n".join(_lines(value)) + "\n"


def _lines(value: object) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _entry(f"{key}:", inner, "  ")
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for inner in value:
            nested = list(_lines(inner)) if _is_nested(inner) else [_scalar(inner)]
            yield f"- {nested[0]}"
            yield from (f"  {line}" for line in nested[1:])


def _entry(head: str, value: object, indent: str) -> Iterator[str]:
    if _is_nested(value):
        yield head
        # Items of a sequence may stand under their key without being indented.
        deeper = indent if isinstance(value, Mapping) else ""
        yield from (f"{deeper}{line}" for line in _lines(value))
    elif isinstance(value, str) and not {'"', "\n"}.isdisjoint(value):
        yield f"{head} |-"
        yield from (f"{indent}{line}" for line in value.splitlines())
    else:
        yield f"{head} {_scalar(value)}"


def _is_nested(value: object) -> bool:
    return isinstance(value, Mapping | Sequence) and not isinstance(value, str) and bool(value)


def _scalar(value: object) -> str:
    if isinstance(value, str) and _PLAIN.fullmatch(value) and value.lower() not in _KEYWORDS:
        return value
    # JSON's scalars and empty collections are YAML's.
    return json.dumps(value, ensure_ascii=False)
