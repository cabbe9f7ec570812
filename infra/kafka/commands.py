"""``feedloom kafka`` and ``feedloom topics``."""

from __future__ import annotations

import time

import click


@click.group()
def kafka() -> None:
    """Start, stop and inspect the embedded Kafka broker (development and tests only)."""


@kafka.command()
@click.option("--port", type=click.IntRange(0, 65535), help="0 or unset: any free port, then kept.")
@click.option("--quiet", is_flag=True, help="Print the address only.")
def start(port: int | None, quiet: bool) -> None:
    """Start the broker in the background; fetches Kafka's jars the first time."""
    from rich.console import Console
    from rich.progress import Progress

    from infra.kafka.broker import EmbeddedBroker
    from infra.settings import load_settings

    settings = load_settings()
    broker = EmbeddedBroker(
        settings.home,
        port=settings.kafka.local_port if port is None else port,
        heap_mb=settings.kafka.local_heap_mb,
    )
    console = Console(stderr=True)
    with Progress(console=console, disable=quiet or not console.is_terminal) as bars:
        bar = bars.add_task("Kafka's jars", total=None, visible=False)
        status = broker.start(
            None if quiet else lambda line: click.echo(line, err=True),
            jar_progress=lambda done, total: bars.update(
                bar, completed=done, total=total, visible=True
            ),
        )
    click.echo(
        status.bootstrap_servers
        if quiet
        else f"Kafka answers at {status.bootstrap_servers} (pid {status.pid})"
    )


@kafka.command()
def stop() -> None:
    """Stop the broker; its records stay."""
    from infra.kafka.broker import EmbeddedBroker
    from infra.settings import load_settings

    stopped = EmbeddedBroker(load_settings().home).stop()
    click.echo("Kafka has stopped" if stopped else "Kafka was not running")


@kafka.command(name="status")
def show_status() -> None:
    """Say whether the broker runs and where; exit status 1 if it does not."""
    from infra.kafka.broker import EmbeddedBroker
    from infra.settings import load_settings

    status = EmbeddedBroker(load_settings().home).status()
    if status is None:
        click.echo("Kafka is not running: `feedloom kafka start`")
        raise SystemExit(1)
    minutes = (time.time() - status.started_at) / 60
    click.echo(f"Kafka runs at {status.bootstrap_servers} (pid {status.pid}, up {minutes:.0f} min)")


@kafka.command()
@click.option("-n", "--lines", default=50, show_default=True, type=click.IntRange(min=1))
def logs(lines: int) -> None:
    """Print the end of the broker's log."""
    from infra.kafka.broker import EmbeddedBroker
    from infra.settings import load_settings

    broker = EmbeddedBroker(load_settings().home)
    found = broker.logs(lines)
    if not found:
        click.echo(f"no log yet at {broker.log}", err=True)
    for line in found:
        click.echo(line)


@kafka.command()
@click.option("--yes", is_flag=True, help="Do not ask.")
def reset(yes: bool) -> None:
    """Stop the broker and delete every topic and record of it; the jars stay."""
    from infra.kafka.broker import EmbeddedBroker
    from infra.settings import load_settings

    broker = EmbeddedBroker(load_settings().home)
    if not yes:
        click.confirm(f"Delete every record under {broker.root / 'data'}?", abort=True)
    broker.reset()
    click.echo("Kafka's data is gone")


@click.group()
def topics() -> None:
    """Apply and show the topic catalogue."""


@topics.command()
@click.option("--partitions", type=click.IntRange(min=1), help="Instead of the catalogue's count.")
def apply(partitions: int | None) -> None:
    """Create what is missing and correct what differs; never removes anything."""
    from infra.kafka.bus import resolve_kafka
    from infra.kafka.topics import apply_catalogue
    from infra.settings import load_settings

    changes = apply_catalogue(resolve_kafka(load_settings()), partitions=partitions)
    for change in changes:
        click.echo(change)
    if not changes:
        click.echo("every topic is as the catalogue says")


@topics.command(name="list")
def show() -> None:
    """Show each topic of the catalogue as it is on the broker."""
    from infra.contracts.catalogue import all_topics
    from infra.kafka.bus import resolve_kafka
    from infra.kafka.topics import describe_topics
    from infra.settings import load_settings

    settings = resolve_kafka(load_settings())
    present = describe_topics(settings)
    for spec in all_topics():
        state = present.get(spec.name)
        count = f"{state.partitions:3} partitions" if state else "       missing"
        click.echo(f"{settings.topic_prefix + spec.name:32} {count}  {spec.cleanup_policy}")
