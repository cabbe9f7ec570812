"""A frame of ``feedloom top`` as tables. Pure."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from infra.terminal.lag_view import ago
from infra.terminal.top_frame import ArmRow, Frame, GatewayRow, WorkerRow

NONE = "-"
RIGHT = frozenset(
    {"LAG", "WORST PARTITION", "UNANSWERED", "BATCH", "PARTITIONS", "REQUESTS/S", "TOKENS/S"}
    | {"WEIGHT", "REQUESTS", "TTFT P50", "ROUNDS", "REJECTED", "EXAMPLES", "RECORDS", "PAUSE"}
)
STATES = {"ready": "green", "starting": "yellow", "draining": "yellow", "failed": "red"}


def page(frame: Frame) -> RenderableType:
    """All sections, one below the other; those without anything say so in a word."""
    return Group(
        _head(frame),
        _table(
            "lag",
            ("GROUP", "TOPIC", "LAG", "WORST PARTITION"),
            [
                (
                    one.group,
                    one.topic,
                    _warned(one.lag),
                    NONE
                    if one.worst_partition is None
                    else f"{one.worst_partition} ({one.worst_lag:,})",
                )
                for one in frame.lag
            ],
            "no group has read anything yet",
        ),
        _table(
            "requests not answered yet, by who reads their partitions",
            ("READER", "PARTITIONS", "UNANSWERED", "BATCH"),
            [
                (
                    one.owner or Text("nobody", style="red"),
                    str(one.partitions),
                    _warned(one.unanswered),
                    _warned(one.unanswered_batch),
                )
                for one in frame.owners
            ],
            "no worker reads requests",
        ),
        _table(
            "workers",
            (
                *("WORKER", "STATE", "HEARD", "SERVING", "IN FLIGHT", "QUEUED", "REQUESTS/S"),
                *("TOKENS/S", "PAUSE", "LAST FAILURE"),
            ),
            [_worker(one) for one in frame.workers],
            "no worker has reported",
        ),
        _table(
            "versions",
            (
                *("MODEL", "VERSION", "ARM", "WEIGHT", "ROLLOUT", "REQUESTS", "TOKENS/S"),
                "TTFT P50",
            ),
            [_arm(one) for one in frame.arms],
            "no version serves",
        ),
        _table(
            "gateways",
            ("GATEWAY", "STATE", "HEARD", "REPLIES ON", "URL"),
            [_gateway(one) for one in frame.gateways],
            "no gateway has reported",
        ),
        _table(
            "training",
            ("MODEL", "ROUNDS", "REJECTED", "NEWEST", "STAGE", "AGE", "EXAMPLES", "LAST VERDICT"),
            [
                (
                    one.model,
                    str(one.rounds),
                    str(one.rejected),
                    one.newest,
                    one.stage,
                    ago(one.age_s),
                    f"{one.examples:,}",
                    one.verdict or NONE,
                )
                for one in frame.training
            ],
            "no version was published",
        ),
        _table(
            "dead letters",
            ("TOPIC", "RECORDS"),
            [(topic, _warned(count)) for topic, count in frame.dead_letters.items()],
            "none",
        ),
    )


def _head(frame: Frame) -> Text:
    rates = frame.rates
    text = Text("feedloom top", style="bold")
    text.append(f"  {time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime(frame.at_ms / 1000))} UTC")
    text.append(f"  last {frame.window_s} s\n", style="dim")
    text.append(
        f"{rates.requests_per_s:,.1f} requests/s  {rates.tokens_per_s:,.0f} tokens/s  "
        f"TTFT p50 {milliseconds(rates.ttft_p50_ms)}, p95 {milliseconds(rates.ttft_p95_ms)}  "
    )
    text.append(f"{rates.failed:,} failed", style="red" if rates.failed else "")
    if frame.unreadable:
        text.append(f"  {frame.unreadable:,} unreadable records", style="red")
    return text


def _table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[RenderableType]],
    empty: str,
) -> RenderableType:
    heading = Text(f"\n{title}", style="bold cyan")
    if not rows:
        heading.append(f"  {empty}", style="not bold dim")
        return heading
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for number, name in enumerate(columns):
        table.add_column(
            ("  " if not number else "") + name,
            justify="right" if name in RIGHT else "left",
            overflow="ellipsis" if number == len(columns) - 1 else "fold",
            no_wrap=name in RIGHT or number == len(columns) - 1,
        )
    for first, *others in rows:
        table.add_row(Text("  ").append(first) if isinstance(first, str | Text) else first, *others)
    return Group(heading, table)


def _count(number: int | None) -> str:
    return NONE if number is None else f"{number:,}"


def _worker(one: WorkerRow) -> tuple[RenderableType, ...]:
    return (
        one.worker_id,
        _state(one.state, one.silent),
        f"{ago(one.age_s)} ago",
        ", ".join(one.serving) or NONE,
        _count(one.in_flight),
        _count(one.queued),
        f"{one.requests_per_s:,.1f}",
        f"{one.tokens_per_s:,.0f}",
        milliseconds(one.last_pause_ms),
        Text(one.failure or NONE, style="red" if one.failure else ""),
    )


def _arm(one: ArmRow) -> tuple[RenderableType, ...]:
    return (
        one.model,
        one.version,
        one.arm,
        f"{100 * one.weight:.4g} %",
        one.rollout,
        f"{one.requests:,}",
        f"{one.tokens_per_s:,.0f}",
        milliseconds(one.ttft_p50_ms),
    )


def _gateway(one: GatewayRow) -> tuple[RenderableType, ...]:
    return (
        one.gateway_id,
        _state(one.state, one.silent),
        f"{ago(one.age_s)} ago",
        f"partition {one.reply_partition}",
        one.url or NONE,
    )


def _state(state: str, silent: bool) -> Text:
    return Text("silent" if silent else state, style="red" if silent else STATES.get(state, "dim"))


def _warned(count: int) -> Text:
    return Text(f"{count:,}", style="yellow" if count else "")


def milliseconds(ms: float | None) -> str:
    """With a digit after the point while it says something."""
    return NONE if ms is None else f"{ms:.{1 if ms < 100 else 0}f} ms"
