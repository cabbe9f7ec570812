"""``feedloom kafka`` and ``feedloom topics``."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from infra.kafka.acls import Deployment
    from infra.kafka.broker import BrokerStatus
    from infra.kafka.broker_node import NodeStatus
    from infra.settings import Settings

COMMAND_CONFIG = "admin.properties"
"""What printed ``kafka-acls.sh`` lines call the file that says who asks."""


@click.group()
def kafka() -> None:
    """Start, stop and inspect the embedded Kafka (development and tests only)."""


@kafka.command()
@click.option("--port", type=click.IntRange(0, 65535), help="0 or unset: any free port, then kept.")
@click.option("--secured", is_flag=True, help="With a user and rights of its own per component.")
@click.option(
    "--brokers",
    type=click.IntRange(1, 9),
    help="An odd number, until reset; with 3 one may fail. [default: as before, or 1]",
)
@click.option("--quiet", is_flag=True, help="Print the address only.")
def start(port: int | None, secured: bool, brokers: int | None, quiet: bool) -> None:
    """Start whichever broker does not run, in the background; fetches Kafka's jars once.

    Once --secured, always secured, until `feedloom kafka reset`: clients log in, and each may do
    only what `feedloom topics acls` lists for its component.
    """
    from rich.console import Console
    from rich.progress import Progress

    from infra.kafka.access import secure
    from infra.kafka.broker import EmbeddedKafka
    from infra.settings import load_settings

    settings = load_settings()
    broker = EmbeddedKafka(
        settings.home,
        port=settings.kafka.local_port if port is None else port,
        heap_mb=settings.kafka.local_heap_mb,
        secured=secured,
        brokers=brokers,
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
    if status.secured:
        secure(broker.settings(status), broker.credentials, _deployment(settings))
    click.echo(
        status.bootstrap_servers
        if quiet
        else f"Kafka answers at {status.bootstrap_servers} ({_processes(status)})"
    )
    if status.secured and not quiet:
        click.echo(
            f"passwords are in {broker.credentials.folder}, a file a user; commands of this home "
            f"log in as {settings.kafka.local_user} (FEEDLOOM_KAFKA__LOCAL_USER)"
        )


@kafka.command()
@click.option("--broker", type=click.IntRange(min=1), help="This one of several only.")
def stop(broker: int | None) -> None:
    """Stop the brokers; their records stay."""
    from infra.kafka.broker import EmbeddedKafka
    from infra.settings import load_settings

    stopped = EmbeddedKafka(load_settings().home).stop(broker)
    who = "Kafka" if broker is None else f"broker {broker}"
    click.echo(f"{who} has stopped" if stopped else f"{who} was not running")


@kafka.command()
def restart() -> None:
    """Restart one broker after the other, each when the data of the last is whole again."""
    from infra.kafka.broker import EmbeddedKafka
    from infra.settings import load_settings

    settings = load_settings()
    EmbeddedKafka(settings.home, heap_mb=settings.kafka.local_heap_mb).restart(
        lambda line: click.echo(line, err=True)
    )
    click.echo("every broker was restarted, and has all data")


@kafka.command(name="status")
def show_status() -> None:
    """Say what runs and where; exit status 1 if a broker does not."""
    from infra.kafka.broker import EmbeddedKafka
    from infra.kafka.topics import behind
    from infra.settings import load_settings

    kafka = EmbeddedKafka(load_settings().home)
    status = kafka.status()
    if status is None:
        click.echo(kafka.not_running())
        raise SystemExit(1)
    how = ", secured" if status.secured else ""
    if status.brokers == 1:
        (node,) = status.nodes
        click.echo(f"Kafka runs at {node.address} (pid {node.pid}, up {_minutes(node)} min{how})")
        return
    running = {node.number: node for node in status.nodes}
    click.echo(f"Kafka runs at {status.bootstrap_servers}{how}")
    for number in range(1, status.brokers + 1):
        if (one := running.get(number)) is None:
            click.echo(f"  broker {number}: not running: `feedloom kafka start`")
        else:
            click.echo(f"  broker {number}: {one.address} (pid {one.pid}, up {_minutes(one)} min)")
    late = behind(kafka.settings(status))
    click.echo(
        f"  {len(late)} partitions are not whole on all their brokers, such as {late[0]}"
        if late
        else "  every partition is whole on all its brokers"
    )
    if len(running) < status.brokers:
        raise SystemExit(1)


@kafka.command()
@click.option("-n", "--lines", default=50, show_default=True, type=click.IntRange(min=1))
@click.option("--broker", default=1, show_default=True, type=click.IntRange(min=1))
def logs(lines: int, broker: int) -> None:
    """Print the end of a broker's log."""
    from infra.kafka.broker import EmbeddedKafka
    from infra.settings import load_settings

    node = EmbeddedKafka(load_settings().home).node(broker)
    found = node.logs(lines)
    if not found:
        click.echo(f"no log yet at {node.log}", err=True)
    for line in found:
        click.echo(line)


@kafka.command()
@click.option("--yes", is_flag=True, help="Do not ask.")
def reset(yes: bool) -> None:
    """Stop the brokers and delete every topic and record; the jars stay."""
    from infra.kafka.broker import EmbeddedKafka
    from infra.settings import load_settings

    broker = EmbeddedKafka(load_settings().home)
    if not yes:
        click.confirm(f"Delete every record under {broker.root}?", abort=True)
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


@topics.command()
@click.option("--component", "components", multiple=True, help="Of this one only; may be repeated.")
@click.option("--principal", help="Who the one component is; by default User:COMPONENT.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "commands", "json"]),
    default="text",
    show_default=True,
    help="A table, kafka-acls.sh command lines, or JSON.",
)
@click.option("--apply", "apply_them", is_flag=True, help="Allow it on the broker, too.")
def acls(components: tuple[str, ...], principal: str | None, form: str, apply_them: bool) -> None:
    """Print what each component needs to be allowed on the broker, and no more.

    With --apply, whoever runs this must be allowed to alter the cluster; rights are only added.
    """
    from infra.kafka import acls as rules
    from infra.kafka.access import apply_grants
    from infra.kafka.bus import resolve_kafka
    from infra.settings import load_settings

    chosen = [one for one in rules.COMPONENTS if not components or one in components]
    if unknown := sorted(set(components) - set(rules.COMPONENTS)):
        raise click.BadParameter(
            f"{unknown[0]!r} is none of {', '.join(rules.COMPONENTS)}", param_hint="--component"
        )
    if principal is not None and (len(chosen) != 1 or ":" not in principal):
        raise click.BadParameter(
            "is of the form User:NAME, and goes with exactly one --component",
            param_hint="--principal",
        )
    settings = load_settings()
    sets = [
        (one, principal or f"User:{one}", rules.grants(one, _deployment(settings)))
        for one in chosen
    ]
    if apply_them:
        kafka = resolve_kafka(settings)
        changes = [line for _, who, found in sets for line in apply_grants(kafka, who, found)]
        for line in changes or ["everything was allowed already"]:
            click.echo(line)
        return
    if form == "json":
        click.echo(rules.as_json(sets))
    elif form == "commands":
        servers = settings.kafka.bootstrap_servers or "BOOTSTRAP_SERVERS"
        for _, who, found in sets:
            click.echo(
                rules.as_commands(
                    who, found, bootstrap_servers=servers, command_config=COMMAND_CONFIG
                )
            )
    else:
        click.echo("\n\n".join(rules.as_text(*one) for one in sets))


def _processes(status: BrokerStatus) -> str:
    return ", ".join(f"pid {pid}" for pid in status.pids)


def _minutes(node: NodeStatus) -> int:
    return round((time.time() - node.started_at) / 60)


def _deployment(settings: Settings) -> Deployment:
    from infra.kafka.acls import Deployment

    return Deployment(topic_prefix=settings.kafka.topic_prefix, worker_group=settings.worker.group)
