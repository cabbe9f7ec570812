"""Consumer lag as a table and as data. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from infra.kafka.commit_times import LOOK_BACK_S
from infra.kafka.partition_lag import GroupReport, PartitionLag

UNKNOWN = "-"


def as_json(reports: Iterable[GroupReport], *, now_ms: int) -> dict[str, Any]:
    """Every partition. ``moved_s``: how long ago, ``null`` where that is not known."""
    return {
        "groups": [
            {
                "group": report.group,
                "state": report.state,
                "members": report.members,
                "lag": report.lag,
                "partitions": [
                    {
                        "topic": one.topic,
                        "partition": one.partition,
                        "committed": one.committed,
                        "end": one.end,
                        "lag": one.lag,
                        "owner": one.owner or None,
                        "moved_s": None
                        if one.moved_ms is None
                        else max(0, now_ms - one.moved_ms) / 1000,
                    }
                    for one in report.partitions
                ],
            }
            for report in reports
        ]
    }


def page(reports: Sequence[GroupReport], *, now_ms: int, every: bool) -> RenderableType:
    """A table a group. Without ``every``, partitions at rest are counted and not listed."""
    parts: list[RenderableType] = []
    for report in reports:
        parts += [_title(report), _table(report, now_ms, every)]
        if not report.times_known:
            parts.append(
                Text("  when offsets moved may not be read here (__consumer_offsets)", style="dim")
            )
    return Group(*parts)


def _title(report: GroupReport) -> Text:
    title = Text(report.group, style="bold")
    members = f"{report.members} member{'' if report.members == 1 else 's'}"
    title.append(f"  {report.state}, {members}, lag ", style="dim")
    title.append(f"{report.lag:,}", style="yellow" if report.lag else "green")
    return title


def _table(report: GroupReport, now_ms: int, every: bool) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("  TOPIC", "PARTITION", "COMMITTED", "END", "LAG", "MOVED", "OWNER"):
        table.add_column(
            name,
            justify="left" if name in ("  TOPIC", "OWNER") else "right",
            no_wrap=name not in ("  TOPIC", "OWNER"),
            overflow="fold",
        )
    for topic, partitions in groupby(report.partitions, key=lambda one: one.topic):
        known = list(partitions)
        shown = [one for one in known if every or _is_news(one)]
        for one in shown:
            table.add_row(*_row(one, report.times_known, now_ms))
        if rest := len(known) - len(shown):
            table.add_row(
                f"  {topic}", f"{rest} more" if shown else f"all {rest}", "", "", "0", "", ""
            )
    return table


def _is_news(one: PartitionLag) -> bool:
    return one.lag > 0 or bool(one.committed and one.moved_ms is not None)


def _row(one: PartitionLag, times_known: bool, now_ms: int) -> Iterator[Text | str]:
    yield f"  {one.topic}"
    yield str(one.partition)
    yield UNKNOWN if one.committed is None else f"{one.committed:,}"
    yield f"{one.end:,}"
    yield Text(f"{one.lag:,}", style="yellow" if one.lag else "")
    if one.moved_ms is not None:
        yield f"{ago(max(0, now_ms - one.moved_ms) / 1000)} ago"
    else:
        long_ago = times_known and one.committed
        yield f"> {LOOK_BACK_S / 60:.0f} min ago" if long_ago else UNKNOWN
    yield one.owner or Text("nobody", style="red" if one.lag else "dim")


def ago(seconds: float) -> str:
    """A past that matters to the second only while it is near."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.0f} h"
