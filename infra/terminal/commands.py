"""``feedloom lag``, ``feedloom top`` and ``feedloom trace``."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from infra.kafka.partition_lag import GroupReport, GroupsLag
    from infra.settings import Settings
    from infra.terminal.span_sources import SpanSource

UNKNOWN_FOR_S = 10.0
PIPED_WIDTH = 160
HINTS = {
    True: (
        "check the id; a span is written a second after its end, and by processes of `feedloom up`,"
        " of `feedloom demo`, and with FEEDLOOM_TELEMETRY__SPAN_DIRECTORY; to look elsewhere:"
        " --spans, --otlp-json, --jaeger"
    ),
    False: "check the id, and whether spans of that time are kept there",
}
"""What to do about a request that is not found, by whether span files were looked at."""


def _console() -> Console:
    """As wide as the terminal; where there is none, as in a pipe, names are not cut."""
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = PIPED_WIDTH
    return console


@click.command()
@click.option("--group", "groups", multiple=True, help="Of this group only; may be repeated.")
@click.option("--all", "every", is_flag=True, help="List partitions at rest too.")
@click.option("--watch", is_flag=True, help="Go on, until Ctrl-C.")
@click.option(
    "--interval",
    default=2.0,
    show_default=True,
    type=click.FloatRange(min=0.2),
    help="Seconds between two readings of --watch.",
)
@click.option("--json", "as_json", is_flag=True, help="As JSON; with --watch one document a line.")
def lag(groups: tuple[str, ...], every: bool, watch: bool, interval: float, as_json: bool) -> None:
    """Show how far consumer groups are behind, by topic and partition.

    LAG counts the records after the committed offset, MOVED says how long ago that moved, OWNER who
    reads the partition now. The groups are those of workers, of the trainer and of the gateways'
    batches, where they are there. Records that mark the end of a transaction count until something
    after them is read.
    """
    import json
    from contextlib import closing

    from infra.contracts import catalogue
    from infra.kafka.bus import resolve_kafka
    from infra.kafka.partition_lag import GroupsLag
    from infra.settings import load_settings
    from infra.terminal import lag_view

    settings = load_settings()
    requests = [catalogue.REQUESTS.name, catalogue.REQUESTS_BATCH.name]
    workers = settings.worker.group
    named = groups or (workers, settings.trainer.group, catalogue.BATCHES_GROUP)
    wanted = {group: requests if group == workers else [] for group in named}

    optional = () if groups else set(named) - {workers}
    with closing(GroupsLag(resolve_kafka(settings), wanted, optional=optional)) as measured:

        def document() -> str:
            return json.dumps(lag_view.as_json(read(), now_ms=_now_ms()))

        def page() -> RenderableType:
            return lag_view.page(read(), now_ms=_now_ms(), every=every)

        def read() -> list[GroupReport]:
            # Of the groups that nobody named, those that never were are of no interest.
            return [
                one
                for one in _measured(measured)
                if groups or one.group == workers or one.partitions
            ]

        if as_json:
            _repeat(lambda: click.echo(document()), interval if watch else None)
        else:
            _show(_console(), page, interval if watch else None)


@click.command()
@click.option("--once", is_flag=True, help="One frame, and end.")
@click.option("--json", "as_json", is_flag=True, help="With --once: the frame as JSON.")
@click.option(
    "--window",
    default=60,
    show_default=True,
    type=click.IntRange(5, 3600),
    help="Seconds over which rates and quantiles are taken.",
)
@click.option(
    "--interval",
    default=2.0,
    show_default=True,
    type=click.FloatRange(min=0.2),
    help="Seconds between two frames.",
)
def top(once: bool, as_json: bool, window: int, interval: float) -> None:
    """Watch the platform, until Ctrl-C: lag, workers, tokens, versions, gateways, dead letters.

    All of it is read from the topics, without a group. UNANSWERED are the requests of a reader's
    partitions that it has not committed: those it works on, those that wait in it, and those that
    it has not fetched.
    """
    import json
    from contextlib import closing
    from dataclasses import asdict

    from infra.kafka.bus import KafkaBus, resolve_kafka
    from infra.settings import load_settings
    from infra.terminal import top_view
    from infra.terminal.top_feed import TopFeed

    if as_json and not once:
        raise click.UsageError("--json goes with --once")
    settings = load_settings()
    kafka = resolve_kafka(settings)
    settings = settings.model_copy(update={"kafka": kafka})
    with KafkaBus(kafka) as bus, closing(TopFeed(bus, settings, window_s=window)) as feed:
        if as_json:
            click.echo(json.dumps(asdict(feed.poll()), indent=2))
            return
        console = _console()
        live = console.is_terminal and not once
        _show(
            console,
            lambda: top_view.page(feed.poll()),
            None if once else interval,
            whole_screen=live,
        )


def _show(
    console: Console,
    page: Callable[[], RenderableType],
    interval_s: float | None,
    *,
    whole_screen: bool = False,
) -> None:
    """Print a page once, or show it anew every ``interval_s`` until Ctrl-C.

    Where nobody looks on, pages follow each other.
    """
    if interval_s is None or not console.is_terminal:
        _repeat(lambda: console.print(page()), interval_s)
        return
    from rich.live import Live

    first = page()
    with Live(first, console=console, auto_refresh=False, screen=whole_screen) as live:
        _repeat(lambda: live.update(page(), refresh=True), interval_s)


def _repeat(act: Callable[[], None], interval_s: float | None) -> None:
    try:
        act()
        while interval_s is not None:
            time.sleep(interval_s)
            act()
    except KeyboardInterrupt:
        if interval_s is None:
            raise


def _measured(lag: GroupsLag) -> list[GroupReport]:
    """A broker that is asked for a group for the first time makes its log of offsets first, and one
    that changes leaders does not tell: it is asked again for a while.
    """
    from infra.kafka.offsets import OffsetsUnknown

    deadline = time.monotonic() + UNKNOWN_FOR_S
    while time.monotonic() < deadline:
        with suppress(OffsetsUnknown):
            return lag.measure()
        time.sleep(0.5)
    return lag.measure()


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


@click.command()
@click.argument("request_id", required=False)
@click.option("--trace-id", help="Of this trace, instead of a request's: 32 hexadecimal digits.")
@click.option(
    "--spans",
    "folders",
    multiple=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="A folder of span files; may be repeated. By default where the platform writes them.",
)
@click.option(
    "--otlp-json",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A file of OTLP/JSON, such as the collector's file exporter writes.",
)
@click.option("--jaeger", metavar="URL", help="A Jaeger query service (http://127.0.0.1:16686).")
@click.option("--attributes", is_flag=True, help="Every attribute of every span.")
@click.option(
    "--most-linked",
    default=8,
    show_default=True,
    type=click.IntRange(min=0),
    help="Of the traces that one trace is linked with.",
)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def trace(
    request_id: str | None,
    trace_id: str | None,
    folders: tuple[Path, ...],
    otlp_json: Path | None,
    jaeger: str | None,
    attributes: bool,
    most_linked: int,
    as_json: bool,
) -> None:
    """Show the path of REQUEST_ID through the platform, and what came of it.

    A line a span: name, service, kind, when it began, how long it took, status. Below it the traces
    that span links tie it to: its feedback, the training run that read that, the version that was
    published, the switch to it, the decision on it.

    The platform's span files are those of FEEDLOOM_TELEMETRY__SPAN_DIRECTORY, or else of
    `feedloom up` and of the last `feedloom demo`.
    """
    import json

    from infra.contracts.errors import ConfigurationError
    from infra.settings import load_settings
    from infra.terminal import trace_tree, trace_view

    if (request_id is None) == (trace_id is None):
        raise click.UsageError("give a REQUEST_ID or a --trace-id")
    if sum((bool(folders), otlp_json is not None, jaeger is not None)) > 1:
        raise click.UsageError("--spans, --otlp-json and --jaeger exclude each other")
    source = _source(load_settings(), folders, otlp_json, jaeger)
    if trace_id is not None:
        wanted, asked = f"trace {trace_id}", trace_id.strip().lower()
        story = trace_tree.of_trace(source, asked, most_linked=most_linked)
    else:
        assert request_id is not None
        wanted = f"request {request_id}"
        story = trace_tree.of_request(source, request_id, most_linked=most_linked)
    if story is None:
        local = otlp_json is None and jaeger is None
        raise ConfigurationError(f"no span of {wanted} in {source.where}: {HINTS[local]}")
    if as_json:
        click.echo(json.dumps(trace_view.as_json(story), indent=2))
    else:
        trace_view.show(story, _console(), every_attribute=attributes)


def _source(
    settings: Settings, folders: tuple[Path, ...], otlp_json: Path | None, jaeger: str | None
) -> SpanSource:
    from infra.local.platform import span_folder
    from infra.terminal.span_sources import SpanFiles

    if jaeger is not None:
        from infra.terminal.jaeger import JaegerSource

        return JaegerSource(jaeger)
    if otlp_json is not None:
        from infra.terminal.otlp_json import read_otlp_json

        return read_otlp_json(otlp_json)
    if not folders:
        folders = (span_folder(settings),)
        if settings.telemetry.span_directory is None:
            folders += (span_folder(settings, settings.home / "demo" / "state"),)
    return SpanFiles(folders)
