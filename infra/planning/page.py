"""A plan as a page for people and as data for programs. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from infra.planning.brokers import HORIZON_S
from infra.planning.coefficients import Coefficients
from infra.planning.figures import Figure, Sheet, duration, number, shown
from infra.planning.plan import Plan
from infra.planning.topology import MIRRORING
from infra.planning.traffic import Flow


def page(plan: Plan, coefficients: Coefficients, *, explain: bool) -> RenderableType:
    """Sheet by sheet; with ``explain`` each formula with its numbers, and every ground."""
    parts: list[RenderableType] = [Text(_asked(plan), style="bold")]
    for sheet in plan.sheets:
        parts += [Text(), _table(sheet, explain)]
        if sheet.title == "Its Kafka":
            parts += [Text(), _flows(plan)]
    parts += [Text(), _edges(plan)]
    if plan.deployment.clusters > 1:
        parts += [Text(), _mirroring(explain)]
    if explain:
        parts += [Text(), _grounds(plan, coefficients)]
    if plan.warnings:
        parts.append(Text())
    parts += [Text(f"! {line}") for line in plan.warnings]
    return Group(*parts)


def _asked(plan: Plan) -> str:
    load, machines, place = plan.workload, plan.machines, plan.placement
    where = f"{place.regions} regions" if place.regions > 1 else "one region"
    zones = f"{place.zones} zones" if place.zones > 1 else "one zone"
    return (
        f"{number(load.requests_per_s)} requests/s of {load.prompt_tokens:,.0f} + "
        f"{load.output_tokens:,.0f} tokens, {plan.model.name} on {machines.gpu}, {where}, {zones}"
    )


def _new(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)


def _table(sheet: Sheet, explain: bool) -> Table:
    table = _new(sheet.title)
    table.add_column("")
    table.add_column("", justify="right", no_wrap=True)
    table.add_column("rests on", no_wrap=True)
    if explain:
        table.add_column("formula", overflow="fold")
    for figure in sheet.figures:
        cells = [figure.label, shown(figure.value, figure.unit), figure.basis]
        table.add_row(*cells, *([figure.formula] if explain else []))
    return table


def _flows(plan: Plan) -> Table:
    table = _new("Its topics at the peak")
    table.add_column("topic", no_wrap=True)
    for name in ("records/s", "bytes", "in", "readers", "out", "kept for"):
        table.add_column(name, justify="right", no_wrap=True)
    copies = plan.placement.replication
    table.add_column(f"on disk, x {copies}", justify="right", no_wrap=True)
    for flow in plan.cluster.flows:
        table.add_row(
            flow.topic,
            number(flow.records_s),
            number(round(flow.record_bytes)),
            shown(flow.bytes_in, "B/s"),
            number(flow.readers),
            shown(flow.bytes_out, "B/s"),
            _kept(flow),
            shown(copies * flow.kept_bytes(HORIZON_S), "B"),
        )
    return table


def _kept(flow: Flow) -> str:
    if flow.keys is not None:
        return "newest"
    if flow.kept_s is None:
        return "ever (30 d)"
    return duration(flow.kept_s) if flow.kept_s else "newest"


def _edges(plan: Plan) -> Table:
    table = _new("Where one cluster ends")
    table.add_column("")
    table.add_column("requests/s", justify="right", no_wrap=True)
    table.add_column("rests on", no_wrap=True)
    for edge in plan.edges:
        table.add_row(edge.label, number(round(edge.rate)), edge.basis)
    return table


def _mirroring(explain: bool) -> Table:
    table = _new("Mirrored between clusters")
    table.add_column("topic", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("why")
    for one in MIRRORING:
        if explain or one.direction != "stays":
            table.add_row(one.spec.name, one.direction, one.why)
    return table


def _grounds(plan: Plan, coefficients: Coefficients) -> Table:
    table = _new("What it rests on")
    table.add_column("coefficient", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("as of", no_wrap=True)
    table.add_column("source", overflow="fold")
    for name in used(plan):
        one = coefficients[name]
        note = f". {one.note}" if one.note else ""
        unit = "" if one.unit in ("1", "ratio") else one.unit
        table.add_row(name, shown(one.value, unit), one.basis, one.as_of, one.source + note)
    return table


def used(plan: Plan) -> list[str]:
    """Ids of every coefficient that a number of the plan rests on."""
    return sorted({name for sheet in plan.sheets for one in sheet.figures for name in one.rests_on})


def as_data(plan: Plan, coefficients: Coefficients) -> dict[str, Any]:
    """Everything, in SI units: seconds, bytes."""
    return {
        "figures": {
            one.key: {
                "label": one.label.strip(),
                "value": one.value,
                "unit": one.unit,
                "basis": one.basis,
                "formula": one.formula,
                "rests_on": sorted(one.rests_on),
            }
            for one in _figures(plan.sheets)
        },
        "topics": [
            {
                "topic": flow.topic,
                "partitions": flow.partitions,
                "records_per_s": flow.records_s,
                "record_bytes": flow.record_bytes,
                "readers": flow.readers,
                "bytes_in_per_s": flow.bytes_in,
                "bytes_out_per_s": flow.bytes_out,
                "kept_s": flow.kept_s,
                "bytes_on_disk": plan.placement.replication * flow.kept_bytes(HORIZON_S),
            }
            for flow in plan.cluster.flows
        ],
        "one_cluster_ends_at": {edge.key: edge.rate for edge in plan.edges},
        "mirroring": {one.spec.name: one.direction for one in MIRRORING},
        "coefficients": {
            name: {
                "value": coefficients[name].value,
                "unit": coefficients[name].unit,
                "basis": coefficients[name].basis,
                "source": coefficients[name].source,
                "as_of": coefficients[name].as_of,
            }
            for name in used(plan)
        },
        "warnings": list(plan.warnings),
    }


def _figures(sheets: Iterable[Sheet]) -> Iterator[Figure]:
    for sheet in sheets:
        yield from sheet.figures


def without_trailing_spaces(text: str) -> str:
    """As a file or a document holds it: rich fills every line to the width of its table."""
    return re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE)
