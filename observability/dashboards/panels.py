"""A dashboard as data, and the JSON that Grafana loads. Knows nothing of what is shown.

The JSON is Grafana's classic model (``schemaVersion`` 41), which file provisioning takes in every
Grafana since 11. Only what differs from Grafana's defaults is written.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from observability.prometheus_names import Foreign, prometheus_name
from observability.promql import Match, Query, Selector, chosen, select

SCHEMA_VERSION = 41
METRICS = {"type": "prometheus", "uid": "feedloom-prometheus"}
"""The data source of every panel; its provisioning links exemplars to the traces."""
COLUMNS = 24


@dataclass(frozen=True, kw_only=True)
class Variable:
    """A choice above the panels. It narrows each series that has one of ``attributes``.

    Its values are those of ``attribute`` in ``source``.
    """

    name: str
    title: str
    source: str
    attribute: str
    attributes: tuple[str, ...]

    @property
    def query(self) -> str:
        """Grafana's; raises UnknownSeriesError."""
        series = select(self.source)
        name = prometheus_name(series.source)
        if series.source.kind == "histogram":
            name += "_count"
        return f"label_values({name}, {series.known(self.attribute)})"


@dataclass(frozen=True)
class Scope:
    """Makes selectors that follow the dashboard's variables."""

    variables: tuple[Variable, ...]

    def __call__(
        self, source: str | Foreign, conditions: Mapping[str, Match] | None = None
    ) -> Selector:
        """Raises UnknownSeriesError."""
        series = select(source)
        found = {
            attribute: chosen(variable.name)
            for variable in self.variables
            for attribute in variable.attributes
            if attribute in series.attributes and attribute not in (conditions or {})
        }
        return series.where({**found, **(conditions or {})})


@dataclass(frozen=True, kw_only=True)
class Target:
    """One query of a panel; without a ``legend`` the values of its labels name each series."""

    query: Query
    legend: str = ""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A graph, or with ``kind`` ``stat`` the last value.

    ``unit``: Grafana's, where the one that follows from the queries' would mislead. ``limit``: a
    line, and red beyond it (``below``: under it). ``log``: a logarithmic axis.
    """

    title: str
    description: str
    targets: tuple[Target, ...]
    kind: Literal["timeseries", "stat"] = "timeseries"
    unit: str = ""
    width: int = 8
    limit: float | None = None
    below: bool = False
    most: float | None = None
    log: bool = False

    def __post_init__(self) -> None:
        if len({target.query.unit for target in self.targets}) != 1:
            raise ValueError(f"panel {self.title!r} mixes units")

    @property
    def grafana_unit(self) -> str:
        """By the unit of the queries, in the convention's spelling."""
        return self.unit or grafana_unit(self.targets[0].query.unit)


@dataclass(frozen=True, kw_only=True)
class Row:
    """Panels under one heading, laid out from left to right. ``height``: Grafana's rows."""

    title: str
    panels: tuple[Panel, ...]
    height: int = 7


@dataclass(frozen=True, kw_only=True)
class Dashboard:
    """One page."""

    uid: str
    title: str
    description: str
    variables: tuple[Variable, ...]
    rows: tuple[Row, ...]

    @property
    def panels(self) -> tuple[Panel, ...]:
        """Of all rows."""
        return tuple(panel for row in self.rows for panel in row.panels)


def graph(
    title: str,
    description: str,
    *queries: Query | tuple[str, Query],
    unit: str = "",
    width: int = 8,
    limit: float | None = None,
    below: bool = False,
    most: float | None = None,
    log: bool = False,
) -> Panel:
    """Lines over time; a query may come with its legend. Other arguments: see ``Panel``."""
    return Panel(
        title=title,
        description=description,
        targets=_targets(queries),
        unit=unit,
        width=width,
        limit=limit,
        below=below,
        most=most,
        log=log,
    )


def stat(
    title: str,
    description: str,
    query: Query,
    *,
    unit: str = "",
    width: int = 4,
    limit: float | None = None,
    below: bool = False,
) -> Panel:
    """The last value, large."""
    return Panel(
        title=title,
        description=description,
        targets=_targets((query,)),
        kind="stat",
        unit=unit,
        width=width,
        limit=limit,
        below=below,
    )


def _targets(queries: Iterable[Query | tuple[str, Query]]) -> tuple[Target, ...]:
    return tuple(
        Target(query=one) if isinstance(one, Query) else Target(query=one[1], legend=one[0])
        for one in queries
    )


def grafana_unit(unit: str) -> str:
    """Grafana's id of a unit of the OpenTelemetry conventions."""
    known = {"s": "s", "1": "percentunit", "": "short"}
    if unit in known:
        return known[unit]
    thing, slash, _ = unit.partition("/")
    thing = thing.strip("{}")
    return f"suffix: {thing}/s" if slash else "short"


def render(dashboard: Dashboard) -> str:
    """The file's text, the same for the same dashboard."""
    return json.dumps(as_grafana(dashboard), indent=1, ensure_ascii=False) + "\n"


def as_grafana(dashboard: Dashboard) -> dict[str, object]:
    """Grafana's model of it."""
    return {
        "uid": dashboard.uid,
        "title": dashboard.title,
        "description": dashboard.description,
        "tags": ["feedloom"],
        "schemaVersion": SCHEMA_VERSION,
        "editable": False,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "links": [
            {
                "type": "dashboards",
                "title": "Feedloom",
                "tags": ["feedloom"],
                "asDropdown": True,
                "keepTime": True,
                "includeVars": True,
            }
        ],
        "templating": {"list": [_variable(one) for one in dashboard.variables]},
        "panels": list(_panels(dashboard.rows)),
    }


def _variable(variable: Variable) -> dict[str, object]:
    return {
        "type": "query",
        "name": variable.name,
        "label": variable.title,
        "datasource": METRICS,
        "query": {"query": variable.query, "refId": variable.name},
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        # Also what lacks the label: a request that failed before a version was picked.
        "allValue": ".*",
        "current": {"text": ["All"], "value": ["$__all"]},
    }


def _panels(rows: Iterable[Row]) -> Iterator[dict[str, object]]:
    number, top = 1, 0
    for row in rows:
        yield {
            "id": number,
            "type": "row",
            "title": row.title,
            "collapsed": False,
            "gridPos": {"h": 1, "w": COLUMNS, "x": 0, "y": top},
            "panels": [],
        }
        number, top, left = number + 1, top + 1, 0
        for panel in row.panels:
            if left + panel.width > COLUMNS:
                top, left = top + row.height, 0
            place = {"h": row.height, "w": panel.width, "x": left, "y": top}
            yield {"id": number, **_panel(panel), "gridPos": place}
            number, left = number + 1, left + panel.width
        top += row.height


def _panel(panel: Panel) -> dict[str, object]:
    defaults: dict[str, object] = {"unit": panel.grafana_unit}
    custom: dict[str, object] = {}
    if panel.kind == "timeseries":
        custom = {"lineWidth": 1, "fillOpacity": 5, "showPoints": "auto", "spanNulls": False}
    if not panel.log:
        defaults["min"] = 0
    else:
        custom["scaleDistribution"] = {"type": "log", "log": 10}
    if panel.most is not None:
        defaults["max"] = panel.most
    if panel.limit is not None:
        defaults["thresholds"] = _thresholds(panel.limit, below=panel.below)
        if panel.kind == "timeseries":
            custom["thresholdsStyle"] = {"mode": "line"}
    if custom:
        defaults["custom"] = custom
    options: dict[str, object] = (
        {"reduceOptions": {"calcs": ["lastNotNull"], "values": False}}
        if panel.kind == "stat"
        else {
            "legend": {"displayMode": "list", "placement": "bottom"},
            "tooltip": {"mode": "multi"},
        }
    )
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": METRICS,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options,
        "targets": [_target(number, one) for number, one in enumerate(panel.targets)],
    }


def _thresholds(limit: float, *, below: bool) -> dict[str, object]:
    first, then = ("red", "green") if below else ("green", "red")
    steps = [{"color": first, "value": None}, {"color": then, "value": limit}]
    return {"mode": "absolute", "steps": steps}


def _target(number: int, target: Target) -> dict[str, object]:
    labels = " ".join(f"{{{{{label}}}}}" for label in sorted(target.query.labels))
    shown: dict[str, object] = {
        "refId": chr(ord("A") + number),
        "datasource": METRICS,
        "expr": target.query.text,
        "legendFormat": " ".join(part for part in (target.legend, labels) if part) or "all",
    }
    if target.query.buckets:
        shown["exemplar"] = True
    return shown
