"""``feedloom feedback``: give it, have it forgotten, and find who learnt from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import click

if TYPE_CHECKING:
    from infra.contracts.bus import Bus
    from infra.registry.lineage import Lineages
    from infra.settings import Settings

GIVE = "give"


class _GiveByDefault(click.Group):
    """``feedloom feedback REQUEST_ID`` gives feedback: the name of that command may be left out."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in {*self.commands, *ctx.help_option_names}:
            args = [GIVE, *args]
        return super().parse_args(ctx, args)


@click.group(cls=_GiveByDefault)
def feedback() -> None:
    """Say what you think of a result, or have what was said forgotten.

    `feedloom feedback REQUEST_ID --rating up` is short for `feedloom feedback give ...`.
    """


@feedback.command(name=GIVE)
@click.argument("request_id")
@click.option("--rating", type=click.Choice(["up", "down"]))
@click.option("--score", type=float, help="0 to 1.")
@click.option("--edit", help="The text as it should have been.")
@click.option("--prefer", nargs=2, metavar="BETTER WORSE", help="Of two answers, the better one.")
@click.option("--comment")
def give(
    request_id: str,
    rating: Literal["up", "down"] | None,
    score: float | None,
    edit: str | None,
    prefer: tuple[str, str] | None,
    comment: str | None,
) -> None:
    """Say what you think of the result of REQUEST_ID."""
    from infra.kafka.bus import connect
    from infra.settings import load_settings
    from observability.setup import configure_telemetry
    from producers.feedback import FeedbackClient

    if all(given is None for given in (rating, score, edit, prefer, comment)):
        raise click.UsageError("give --rating, --score, --edit, --prefer or --comment")
    settings = load_settings()
    with (
        configure_telemetry("feedloom-cli", settings.telemetry),
        FeedbackClient(connect(settings), source="feedloom-cli") as client,
    ):
        if rating is not None:
            client.rate(request_id, rating)
        if score is not None:
            client.grade(request_id, score)
        if edit is not None:
            client.edit(request_id, edit)
        if prefer is not None:
            client.prefer(request_id, *prefer)
        if comment is not None:
            client.comment(request_id, comment)
    click.echo(f"feedback on {request_id} is published")


@feedback.command()
@click.argument("request_ids", nargs=-1)
@click.option("--principal", "principals", multiple=True, help="All that this one gave.")
@click.option("--reason", help="Why; kept with the request to forget.")
@click.option("--wait", "wait_s", default=30.0, show_default=True, help="Seconds, for the workers.")
def forget(
    request_ids: tuple[str, ...], principals: tuple[str, ...], reason: str | None, wait_s: float
) -> None:
    """Take the feedback on REQUEST_IDS out of every later training run, for good.

    What is still said of them is forgotten too. Lists the versions that have learnt from them.
    Exit status 1 if no worker took the examples out in time; it is done when one runs.
    """
    from infra.kafka.bus import connect
    from infra.registry.lineage import requests_of, taken_out
    from infra.settings import load_settings
    from observability.setup import configure_telemetry
    from producers.feedback import FeedbackClient

    if not request_ids and not principals:
        raise click.UsageError("give request ids, or --principal")
    settings = load_settings()
    with configure_telemetry("feedloom-cli", settings.telemetry), connect(settings) as bus:
        found = requests_of(bus, principals) if principals else []
        requests = list(dict.fromkeys([*request_ids, *found]))
        if not requests:
            click.echo(f"no feedback by {', '.join(principals)} is kept")
            return
        with FeedbackClient(bus, source="feedloom-cli") as client:
            for request_id in requests:
                client.forget(request_id, reason=reason)
        gone = taken_out(bus, requests, wait_s=wait_s)
        left = [request_id for request_id in requests if request_id not in gone]
        click.echo(f"{len(requests) - len(left)} of {len(requests)} examples are taken out")
        _print_learners(_lineages(settings, bus), requests)
    if left:
        click.echo(
            f"feedloom: {len(left)} wait for a worker that joins feedback: {', '.join(left[:5])}",
            err=True,
        )
        raise SystemExit(1)


@feedback.command()
@click.argument("request_id")
def lineage(request_id: str) -> None:
    """List the versions that learnt from the feedback on REQUEST_ID, through parents too."""
    from infra.kafka.bus import connect
    from infra.registry.lineage import forgotten
    from infra.settings import load_settings

    settings = load_settings()
    with connect(settings) as bus:
        event = forgotten(bus).get(request_id)
        if event is not None:
            click.echo(f"to be forgotten: {event.reason or 'no reason given'}")
        _print_learners(_lineages(settings, bus), [request_id])


def _lineages(settings: Settings, bus: Bus) -> Lineages:
    from infra.registry.client import read_registry
    from infra.registry.lineage import Lineages
    from infra.registry.store import ArtifactStore

    return Lineages(ArtifactStore(settings.artifacts), read_registry(bus))


def _print_learners(lineages: Lineages, requests: Sequence[str]) -> None:
    learners = lineages.learners(requests)
    for version, itself in learners:
        how = "was trained on it" if itself else "descends from a version that was"
        click.echo(f"{version.model}@{version.version} {how}")
    if not learners:
        click.echo("no version has learnt from it")
